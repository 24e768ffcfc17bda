"""The vocabulary of events: complete, documented, and with ids by which repeats can be told."""

import re
from dataclasses import fields

import pytest

from gateway import events
from gateway.commands.reference import events_page
from gateway.journal.line import stamp

HEADER = ("time", "event", "schema", "severity", "class", "host", "stream", "sequence", "id")
NAMES = """
    gateway.started gateway.stopped config.loaded config.rejected
    plugin.loaded plugin.replaced plugin.failed plugin.timed_out plugin.logged
    session.opened session.refused session.closed limit.exceeded
    sender.accepted sender.refused recipient.accepted recipient.refused recipient.rewritten
    message.accepted message.refused message.discarded message.held message.released message.retried
    message.deleted message.bounced message.expired message.finished
    delivery.started delivery.delivered delivery.deferred delivery.failed
    events.dropped journal.full journal.recovered
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_every_name_of_the_contract_is_in_the_vocabulary(name):
    assert name == events.VOCABULARY[name].NAME


@pytest.mark.parametrize("cls", events.VOCABULARY.values(), ids=events.VOCABULARY)
def test_an_event_says_when_it_is_emitted_and_stays_off_the_header(cls):
    assert cls.__doc__
    assert not cls.__doc__.startswith(cls.__name__)  # dataclasses write the signature when there is none
    own = set(cls.KEYS) - {"severity"}  # a log line brings its own severity
    assert not own & set(HEADER)
    assert cls().facts().keys() <= {"severity"}


@pytest.mark.parametrize(
    "cls", [cls for cls in events.VOCABULARY.values() if cls.ONCE], ids=lambda cls: cls.NAME
)
def test_a_repeated_fate_has_the_same_id_and_another_fate_has_not(cls):
    told = {"message": "m", "recipient": "r@x", "number": 1, "attempt": 2}
    assert cls(**told).identity() == cls(**told, recovered=True).identity()
    for name, other in {"message": "n", "recipient": "s@x", "number": 2, "attempt": 3}.items():
        assert cls(**told).identity() != cls(**{**told, name: other}).identity()
    others = {one(**told).identity() for one in events.VOCABULARY.values() if one is not cls}
    assert cls(**told).identity() not in others


def test_what_may_happen_twice_has_two_ids():
    assert events.MessageHeld(message="m").identity() != events.MessageHeld(message="m").identity()
    assert events.SessionOpened().identity() != events.SessionOpened().identity()


def test_an_address_that_is_no_utf8_has_an_id():
    event = events.DeliveryFailed(message="m", recipient=b"\xff@x".decode("utf-8", "surrogateescape"))
    assert event.identity() == event.identity()


def test_a_record_has_its_header_in_order_and_only_facts_that_are_set():
    event = events.DeliveryDelivered(message="m", attempt=1, client_ip="192.0.2.1")
    record = stamp(event, 1_790_000_000.25, "mx", "shard-0", 7)
    assert tuple(record)[: len(HEADER)] == HEADER
    assert record["time"] == "2026-09-21T14:13:20.250000Z"
    assert (record["event"], record["class"], record["severity"]) == ("delivery.delivered", "fate", "info")
    assert (record["host"], record["stream"], record["sequence"]) == ("mx", "shard-0", 7)
    facts = {key: value for key, value in record.items() if key not in HEADER}
    assert facts == {"message": "m", "attempt": 1, "client.ip": "192.0.2.1"}


def test_a_log_line_brings_its_own_severity():
    record = stamp(events.PluginLogged(text="x", level="error"), 0, "h", "s", 1)
    assert record["severity"] == "error"
    assert tuple(record)[: len(HEADER)] == HEADER


def test_times_always_have_six_digits_and_sort_as_text():
    times = [
        stamp(events.GatewayStopped(), when, "h", "s", 1)["time"] for when in (0.0, 0.9999999, 1.0, 1.5, 99.1)
    ]
    assert times == sorted(times)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one) for one in times)


def test_the_reference_page_names_every_event_and_every_field_with_its_comment():
    page = events_page()
    for name, cls in events.VOCABULARY.items():
        assert f"## `{name}`" in page
        assert all(f"| `{key}` |" in page for key in cls.KEYS)
    assert "| `client.ip` | str | Address of the client. |" in page
    assert len(fields(events.Event)) == len(events.Event.KEYS)
