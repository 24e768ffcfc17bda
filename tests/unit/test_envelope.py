"""What mail is while it moves: ids, recipients, VERP."""

import uuid

import pytest

from gateway import Address, Recipient
from gateway.envelope import expand_verp, new_id


@pytest.mark.parametrize("step", [2_000_000, 1_000])
def test_ids_are_uuids_of_version_7_sorted_by_time(monkeypatch, step):
    stamps = iter(range(1_700_000_000_000_000_000, 1_700_000_001_000_000_000, step))
    monkeypatch.setattr("gateway.envelope.time.time_ns", lambda: next(stamps))
    ids = [new_id() for _ in range(200)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 200
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in ids} == {(7, uuid.RFC_4122)}


def test_a_moved_recipient_keeps_where_it_came_from():
    moved = Recipient.of("info@example.org", params={"NOTIFY": "NEVER"}).at(
        "abc-info@example.org", claimed="locals"
    )
    again = moved.at("x@y", rule="file:3")
    assert (again.address, again.original) == ("x@y", "info@example.org")
    assert (again.claimed, again.rule, again.params) == ("locals", "file:3", {"NOTIFY": "NEVER"})
    assert isinstance(again.address, Address)


@pytest.mark.parametrize(
    ("sender", "recipient", "expanded"),
    [
        ("list-owner-@host.example-@[]", "joe@dom.example", "list-owner-joe=dom.example@host.example"),
        ("list-@host-@[]", "a@b@c", "list-a@b=c@host"),
        ("list-@host-@[]", "joe", "list-@host-@[]"),
        ("plain@host", "joe@dom", "plain@host"),
        ("#@[]", "joe@dom", "#@[]"),
        ("", "joe@dom", ""),
        ("-@[]", "joe@dom", "-@[]"),
    ],
)
def test_verp(sender, recipient, expanded):
    assert expand_verp(Address(sender), Address(recipient)) == expanded
