"""`mailward queue salvage`: a damaged shard becomes an archive, and what is lost has a name."""

import fcntl
import json
import os
import time

import pytest

from gateway.address import Address
from gateway.commands.queue import work
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import Message
from gateway.queue import Snapshot
from gateway.queue.archive.reader import Archive
from gateway.queue.archive.writer import Manifest, Writer

PAGE = 4096
BIRTH = 1_700_000_000.25


@pytest.fixture(autouse=True)
def no_other_process(monkeypatch):
    """The real ones are shown by tests/faults/test_start.py."""
    monkeypatch.setattr(work, "forked", lambda work: work())


@pytest.fixture
def ended():
    return {new_id(): time.time() - 5}


@pytest.fixture
def aside(site, tmp_path, ended):
    """The shard of a gateway with three messages that wait and one that has ended, moved aside."""
    file = tmp_path / "q.tar"
    with file.open("wb") as out:
        writer = Writer(out, Manifest(time.time(), "mail.example.org", "0.1.0"))
        for number, token in enumerate(("ann", "bob", "eve")):
            message = Message(f"Subject: {token}\n".encode(), b"\n" + token.encode() * 5000)
            to = [EntryRecipient(0, Recipient.of("joe@elsewhere.example"), due=time.time() + 3600)]
            writer.add(
                Snapshot(Entry(new_id(), Address(f"{token}@example.com"), message, to, BIRTH + number), 0, 1)
            )
        writer.remember(ended.items())
        writer.end()
    (site.base / "var").mkdir(exist_ok=True)
    site.mailward("queue", "restore", str(file))
    shard = site.base / "var" / "queue" / "shard-0"
    return shard.rename(shard.with_name("damaged-shard-0"))


def spoil(folder, number):
    with (folder / "queue.db").open("r+b") as file:
        file.seek((number - 1) * PAGE)
        file.write(os.urandom(PAGE))


def page_of(folder, text):
    return (folder / "queue.db").read_bytes().index(text) // PAGE + 1


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_what_was_saved_is_restored_with_the_ids_of_what_has_ended(site, aside, ended):
    spoil(aside, 1)
    file = site.base / "saved.tar"
    assert site.mailward("queue", "salvage", str(aside), str(file)) == f"{file}: 3 messages saved, 0 lost\n"
    assert file.stat().st_mode & 0o777 == 0o600
    with Archive.at(file) as archive:
        assert archive.verify() == 3
        assert archive.manifest.created == BIRTH
        assert dict(archive.finished()) == ended
    assert "3 messages restored" in site.mailward("queue", "restore", str(file))
    (one,) = ended
    once = Entry(
        one,
        Address("x@example.com"),
        Message(b"A: b\n"),
        [EntryRecipient(0, Recipient.of("y@z.example"))],
        BIRTH,
    )
    old = site.base / "old.tar"
    with old.open("wb") as out:
        writer = Writer(out, Manifest(time.time(), "mail.example.org", "0.1.0"))
        writer.add(Snapshot(once, 0, 1))
        writer.end()
    assert "0 messages restored, 1 were known here" in site.mailward("queue", "restore", str(old))


def test_a_loss_is_named_and_the_rest_is_saved(site, aside):
    spoil(aside, page_of(aside, b"bob" * 1200))
    file = site.base / "saved.tar"
    loss, told = rows(site.mailward("queue", "salvage", str(aside / "queue.db"), str(file), "--json", code=1))
    assert (loss["sender"], loss["missing"], loss["saved"]) == ("bob@example.com", "its text", False)
    assert loss["recipients"] == ["joe@elsewhere.example"]
    assert (told["messages"], told["lost"], told["in_part"], told["sure"]) == (2, 1, 0, True)
    assert told["file"] == str(file)
    said = site.mailward("queue", "salvage", str(aside), str(file), code=1)
    assert f"lost: {loss['id']} from <bob@example.com> to joe@elsewhere.example: its text\n" in said
    assert "2 messages saved, 1 lost" in said


def test_what_nobody_can_name_is_said_to_be_unknown(site, aside):
    for number in (2, 3, 4):
        spoil(aside, number)
    said = site.mailward("queue", "salvage", str(aside), str(site.base / "saved.tar"), code=1)
    assert "unknown: not all that names messages" in said


def test_a_row_that_no_restore_would_take_is_lost_and_harms_no_other(site, aside):
    raw = (aside / "queue.db").read_bytes()
    at = raw.index(b"bob@example.com")
    place = raw.index(b"message", at) if raw[at : at + 60].find(b"message") > 0 else raw.index(b"smtp", at)
    changed = raw[:place] + b"X" + raw[place + 1 :]
    (aside / "queue.db").write_bytes(changed)
    file = site.base / "saved.tar"
    loss, told = rows(site.mailward("queue", "salvage", str(aside), str(file), "--json", code=1))
    assert loss["missing"].startswith("its envelope")
    assert told["messages"] == 2
    assert "2 messages restored" in site.mailward("queue", "restore", str(file))


def test_with_the_journal_what_it_tells_the_end_of_is_left_out(site, aside):
    file = site.base / "saved.tar"
    site.mailward("queue", "salvage", str(aside), str(file))
    with Archive.at(file) as archive:
        first, *_ = archive.ids()
    journal = site.base / "journal.jsonl"
    facts = {
        "schema": 1,
        "message": first,
        "recipient": "joe@elsewhere.example",
        "number": 0,
        "time": "2023-11-15T00:00:00Z",
    }
    ends = [{"event": "delivery.delivered", **facts}, {"event": "message.finished", **facts}]
    journal.write_text("".join(json.dumps(one) + "\n" for one in ends))
    said = site.mailward("queue", "restore", str(file), "--delivered", str(journal))
    assert "2 messages restored, 0 were known here, 1 recipients had ended" in said


def test_a_shard_in_use_is_refused_and_no_archive_is_left(site, aside):
    with (aside / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "stop it first" in site.mailward(
            "queue", "salvage", str(aside), str(site.base / "s.tar"), code=1
        )
    assert list(site.base.glob("*s.tar*")) == []
