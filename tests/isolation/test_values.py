"""What crosses to a plugin's process and back: the same values, as JSON, and edits as a patch."""

import dataclasses
import json
from pathlib import Path

import pytest

from gateway import (
    Accept,
    Account,
    Address,
    Birth,
    Defer,
    FileBody,
    Hold,
    Message,
    Outcome,
    Recipient,
    Reject,
    Route,
    Session,
    events,
)
from gateway.isolation import Edits, pack, unpack
from gateway.plugin import Crossed
from gateway.testing import delivery, entry, message, recipient, session, transaction

VALUES = [
    None,
    True,
    1.5,
    "text\udcff",
    b"\x00\xff",
    [1, (2, "b"), {"a": {"$": "Address"}}],
    Address("ann@example.org"),
    {Address("a@b"): Reject("5.7.1", "no", reason="r"), Address("c@d"): Accept(recipient=recipient())},
    Defer("4.7.1", "later"),
    Hold("why"),
    session(user="ann", tls="TLSv1.3 X"),
    transaction(to=["a@b", "c@d"], params={"SIZE": "1"}),
    Account("u", 1, 2, "/home/u"),
    Route("remote", "remote", "b"),
    Outcome(0, "deferred", "x", births=(Birth(Address(""), (Address("a@b"),), message(), "bounce"),)),
    events.PluginLoaded(plugin="x", file="y"),
    FileBody(Path("/x"), 3),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_as_they_were(value):
    back = unpack(json.loads(json.dumps(pack(value))))
    assert type(back) is type(value)
    if isinstance(value, Outcome):
        # A message is compared by its bytes.
        assert bytes(back.births[0].message) == bytes(value.births[0].message)
        value, back = dataclasses.replace(value, births=()), dataclasses.replace(back, births=())
    assert back == value


def test_a_delivery_crosses_with_its_entry_and_message():
    attempt = delivery(entry(content=message("body\xff".encode("latin-1"))))
    back = unpack(pack(attempt))
    assert bytes(back.entry.message) == bytes(attempt.entry.message)
    assert (back.route, back.recipients, back.entry.facts) == (
        attempt.route,
        attempt.recipients,
        attempt.entry.facts,
    )


def test_of_the_notes_only_the_plugins_own_cross_and_those_of_a_listener():
    about = session()
    about.notes |= {"mine": Crossed({"n": 1}), "other": object(), "milter": {"i": "1"}}
    back = unpack(pack(about, "mine"))
    assert back.notes == {"mine": Crossed({"n": 1}), "milter": {"i": "1"}}


@pytest.mark.parametrize("value", [object(), Path, lambda: 0, open])
def test_what_cannot_cross_is_refused(value):
    with pytest.raises(TypeError, match="cannot cross"):
        pack([value])


@pytest.mark.parametrize("data", [{"$": "Popen", "of": {"args": "id"}}, {"$": "type", "of": []}, {"x": 1}])
def test_only_known_kinds_are_made(data):
    with pytest.raises((KeyError, TypeError)):
        unpack(data)


def edited(about, change, *, notes_only=False, folder=Path("/nowhere")):
    """Do to a copy what a plugin would do in its process, and apply the patch to the original."""
    packed = pack(about, "mine")
    far = unpack(packed)
    change(far)
    patch = json.loads(json.dumps(Edits.between("mine", [far], [packed]).patch))
    Edits("mine", patch).apply([about], notes_only=notes_only, folder=folder)
    return about


def test_edits_come_back_as_a_patch():
    def change(one):
        one.sender = Address("new@example.org")
        one.recipients.append(Recipient.of("more@example.org"))
        one.session.message_size = 7
        one.session.notes["mine"] = {"n": 1}
        one.saved["mine"] = {"score": 5}

    about = edited(transaction(to=["a@b"]), change)
    assert about.sender == "new@example.org"
    assert [one.address for one in about.recipients] == ["a@b", "more@example.org"]
    assert about.session.message_size == 7
    assert about.session.notes["mine"] == Crossed({"n": 1})
    assert about.saved["mine"] == Crossed({"score": 5})


def test_a_dry_run_keeps_notes_and_leaves_the_mail():
    def change(one):
        one.held = "why"
        one.notes["mine"] = 1

    about = edited(transaction(), change, notes_only=True)
    assert (about.held, about.notes["mine"]) == ("", Crossed(1))


def test_a_message_keeps_the_body_that_was_not_changed(tmp_path):
    body = FileBody(tmp_path / "body", 3)
    about = edited(Message(b"A: b\n", body), lambda one: one.prepend("X", "y"))
    assert about.header == b"X: y\nA: b\n"
    assert about.body is body


def test_a_new_body_on_disk_stands_in_the_plugins_own_folder(tmp_path):
    def change(one):
        one.body = FileBody(tmp_path / "mine/body", 3)

    assert edited(message(), change, folder=tmp_path / "mine").body.path == tmp_path / "mine/body"
    with pytest.raises(ValueError, match="may not stand"):
        edited(message(), change, folder=tmp_path / "other")


def test_what_no_plugin_may_change_is_refused():
    about = session()
    with pytest.raises(ValueError, match=r"Session\.user may not be changed"):
        Edits("mine", {"0": {"user": "root"}}).apply([about], notes_only=False, folder=Path("/x"))
    assert about == dataclasses.replace(about, user="")
    assert isinstance(about, Session)
