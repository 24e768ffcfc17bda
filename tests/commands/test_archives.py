"""`mailward queue backup`, `verify`, `restore`, `export`, `import`, `adopt`, with a gateway and without."""

import fcntl
import json
import os
import shutil
import smtplib
import socket
import time

import pytest
from click.testing import CliRunner

from gateway import console
from gateway.address import Address
from gateway.commands.group import mailward
from gateway.commands.queue import work
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.journal import read
from gateway.message import Message
from gateway.queue import Snapshot
from gateway.queue.archive.reader import Archive
from gateway.queue.archive.writer import Manifest, Writer


@pytest.fixture(autouse=True)
def no_other_process(monkeypatch):
    """The gateway runs in a thread of ours, and must not be forked; tests/faults shows the real one."""
    monkeypatch.setattr(work, "forked", lambda work: work())


@pytest.fixture
def other(site, tmp_path):
    """Another machine: another folder, another name, and nothing in its queue."""
    made = type(site)(tmp_path / "other")
    shutil.copytree(site.conf, made.conf)
    made.write("10-gateway.yaml", (site.conf / "10-gateway.yaml").read_text().replace("mail.", "spare."))
    (made.base / "var").mkdir()
    return made


@pytest.fixture
def archive(tmp_path):
    """A backup of three messages that another gateway has made."""
    file = tmp_path / "q.tar"
    with file.open("wb") as out:
        writer = Writer(out, Manifest(time.time(), "mail.example.org", "0.1.0"))
        for token in ("ann", "bob", "eve"):
            message = Message(f"Subject: {token}\n".encode(), f"\n{token}\n".encode())
            to = [EntryRecipient(0, Recipient.of("joe@elsewhere.example"), due=time.time() + 3600)]
            one = Entry(new_id(), Address(f"{token}@example.com"), message, to, 1_700_000_000.25)
            writer.add(Snapshot(one, 0, 1))
        writer.end()
    return file


@pytest.fixture
def port(running):
    return running()


def send(port, *tokens):
    """Send messages that stay in the queue: nobody serves that host."""
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
        for token in tokens:
            text = f"Subject: {token}\r\n\r\n{token}\r\n"
            client.sendmail(f"{token}@example.com", ["joe@elsewhere.example"], text)


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def senders(site, *options):
    return sorted(
        row["sender"].partition("@")[0] for row in rows(site.mailward("queue", "list", "--json", *options))
    )


def told(site, name):
    return [one for one in read(site.base / "var" / "journal") if one["event"] == name]


def until(look):
    """Wait for what the gateway's thread does."""
    end = time.monotonic() + 10
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def settled(site, count):
    """Wait until so many attempts have ended."""
    until(lambda: len(told(site, "delivery.deferred")) >= count)


def tried(site, *tokens):
    """Wait until the queue knows of the end of each message's first attempt, after the journal does."""

    def ended():
        listed = rows(site.mailward("queue", "list", "--json"))
        return {row["sender"].partition("@")[0] for row in listed if row["recipients"][0]["attempts"]}

    until(lambda: set(tokens) <= ended())


def verify(file, code=0):
    """Run the one command that needs no configuration."""
    done = CliRunner().invoke(mailward, ["queue", "verify", str(file)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_backup_while_the_gateway_runs_is_whole_private_and_told(site, port):
    send(port, "ann", "bob")
    file = site.base / "q.tar"
    (row,) = rows(site.mailward("queue", "backup", str(file), "--json"))
    assert (row["file"], row["messages"], row["size"]) == (str(file), 2, file.stat().st_size)
    assert file.stat().st_mode & 0o777 == 0o600
    said = verify(file)
    assert "whole, 2 messages" in said
    assert "on mail.example.org" in said
    (event,) = until(lambda: told(site, "queue.backup"))
    assert (event["messages"], event["file"]) == (2, str(file))
    assert event["actor"]
    assert [path.name for path in site.base.glob(".q.tar*")] == []


def test_a_backup_goes_into_an_empty_queue_elsewhere_once(other, archive):
    assert "3 messages restored, 0 were known here" in other.mailward("queue", "restore", str(archive))
    assert senders(other) == ["ann", "bob", "eve"]
    assert {event["recovered"] for event in told(other, "message.accepted")} == {True}
    assert {row["birth"] for row in rows(other.mailward("queue", "list", "--json"))} == {1_700_000_000.25}
    assert "0 messages restored, 3 were known here" in other.mailward("queue", "restore", str(archive))
    first, second = told(other, "queue.restored")
    assert (first["messages"], second["known"], first["file"]) == (3, 3, str(archive))
    assert list((other.base / "var").glob("restore-*")) == []
    file = other.base / "again.tar"
    assert "again.tar: 3 messages" in other.mailward("queue", "backup", str(file))
    assert [event["messages"] for event in told(other, "queue.backup")] == [3]


def test_what_a_killed_restore_has_left_is_swept_by_the_next(other, archive):
    other.mailward("queue", "list")
    left, used = (other.base / "var" / f"restore-{name}" for name in ("killed", "runs"))
    for folder in (left, used):
        folder.mkdir()
        (folder / "archive.tar").write_bytes(b"x")
    number = os.open(used, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    other.mailward("queue", "restore", str(archive))
    os.close(number)
    assert list((other.base / "var").glob("restore-*")) == [used]


def test_a_running_gateway_restores_and_delivers_at_once(site, port, archive):
    held = site.mailward("queue", "restore", str(archive), "--hold", "--json")
    assert rows(held) == [{"added": 3, "known": 0, "left_out": 0, "again": [], "lost": [], "holes": {}}]
    assert senders(site, "--state", "held") == ["ann", "bob", "eve"]
    # What was deleted may come back: a backup is for that, too.
    site.mailward("queue", "delete", "--all")
    send(port, "due")
    settled(site, 1)
    file = site.base / "due.tar"
    site.mailward("queue", "backup", str(file))
    site.mailward("queue", "delete", "--all")
    site.mailward("queue", "restore", str(file))
    site.mailward("queue", "retry", "--all")
    settled(site, 2)


@pytest.mark.parametrize("harm", ["flip", "cut", "newer", "none"])
def test_nothing_of_a_damaged_archive_is_loaded(other, archive, harm):
    data = bytearray(archive.read_bytes())
    if harm == "flip":
        data[data.index(b"Subject: bob") + 9] ^= 1
    elif harm == "cut":
        del data[len(data) // 2 :]
    elif harm == "newer":
        data = data.replace(b'"format": 1', b'"format": 2')
    else:
        data = bytearray(b"no archive")
    archive.write_bytes(data)
    said = other.mailward("queue", "restore", str(archive), code=1)
    expected = {"flip": ".eml is damaged", "cut": "cut off", "newer": "newer version", "none": "cut off"}
    assert str(archive) in said
    assert expected[harm] in said
    assert list((other.base / "var").iterdir()) == []
    assert said == verify(archive, code=1)


def test_what_the_journal_tells_the_end_of_is_left_out(site, other, port, tmp_path):
    archive, journal = str(tmp_path / "q.tar"), str(site.base / "var" / "journal")
    send(port, "ann", "bob", "eve")
    tried(site, "ann", "bob", "eve")
    site.mailward("queue", "backup", archive)
    site.mailward("queue", "hold", "--all")
    site.mailward("queue", "delete", "--sender", "bob@example.com")
    send(port, "late")
    tried(site, "late")
    said = other.mailward("queue", "restore", archive, "--delivered", journal)
    assert "2 messages restored, 0 were known here, 1 recipients had ended" in said
    (lost,) = (line for line in said.splitlines() if line.startswith("lost: "))
    assert "from <late@example.com>" in lost
    assert senders(other) == ["ann", "eve"]
    assert [event["delivered"] for event in told(other, "queue.restored")] == [1]
    # Where it waits, it is not lost.
    said = site.mailward("queue", "restore", archive, "--delivered", journal)
    assert "0 messages restored, 2 were known here" in said
    assert "lost:" not in said


def test_exported_messages_come_back_byte_for_byte(other, archive, tmp_path):
    other.mailward("queue", "restore", str(archive))
    folder, again = tmp_path / "out", tmp_path / "again"
    assert "1 messages in" in other.mailward("queue", "export", "--sender", "ann@*", str(folder))
    text, said = sorted(folder.iterdir())
    assert (text.suffix, said.suffix, text.stem) == (".eml", ".json", said.stem)
    assert text.read_bytes() == b"Subject: ann\n\nann\n"
    assert {path.stat().st_mode & 0o777 for path in (text, said)} == {0o600}
    other.mailward("queue", "export", "--all", str(folder))
    assert len(list(folder.iterdir())) == 6
    other.mailward("queue", "delete", "--all")
    assert "1 messages imported, 0 were known" in other.mailward("queue", "import", str(text))
    assert "2 messages imported, 1 were known" in other.mailward("queue", "import", str(folder))
    other.mailward("queue", "export", "--all", str(again))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    nobody = ("queue", "export", "--sender", "nobody@*", str(folder))
    assert "no message in the queue" in other.mailward(*nobody, code=1)


@pytest.mark.parametrize("harm", ["crlf", "json", "none", "id"])
def test_nothing_of_a_folder_with_a_bad_message_is_imported(other, archive, tmp_path, harm):
    with Archive.at(archive) as found:
        (tmp_path / "out").mkdir()
        found.unpack(tmp_path / "out")
    text, said = sorted((tmp_path / "out").iterdir())[2:4]
    if harm == "crlf":
        text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    elif harm == "json":
        said.write_text(said.read_text()[:-20])
    elif harm == "id":
        said.write_text(said.read_text().replace(said.stem, "../../x"))
    else:
        text.unlink()
    assert text.stem in other.mailward("queue", "import", str(tmp_path / "out"), code=1)
    assert list((other.base / "var").iterdir()) == []


def test_a_dead_gateways_shard_is_adopted_and_emptied(site, other, archive):
    for one in (site, other):
        (one.base / "var").mkdir(exist_ok=True)
        one.mailward("queue", "restore", str(archive))
    site.mailward("queue", "delete", "--sender", "bob@example.com")
    left = other.base / "var" / "queue" / "shard-0"
    assert "1 messages adopted, 2 were known here" in site.mailward("queue", "adopt", str(left))
    assert senders(site) == ["ann", "bob", "eve"]
    assert senders(other) == []
    (event,) = told(site, "queue.adopted")
    assert (event["messages"], event["known"], event["folder"]) == (1, 2, str(left))
    assert "0 messages adopted, 0 were known here" in site.mailward("queue", "adopt", str(left))


def test_only_what_is_dead_is_adopted(site, other, port):
    del port
    own = site.base / "var" / "queue" / "shard-0"
    assert "belongs to this gateway" in site.mailward("queue", "adopt", str(own), code=1)
    assert "another gateway" in other.mailward("queue", "adopt", str(own), code=1)
    assert "holds no queue.db" in site.mailward("queue", "adopt", str(other.base), code=1)


def test_an_orphaned_shard_of_our_own_is_not_mistaken_for_anothers(other, archive):
    """Its messages are known here already: to adopt it would delete them."""
    other.mailward("queue", "restore", str(archive))
    queue = other.base / "var" / "queue"
    (queue / "shard-0").rename(queue / "shard-7")
    assert "belongs to this gateway" in other.mailward("queue", "adopt", str(queue / "shard-7"), code=1)
    assert "0 messages restored, 3 were known here" in other.mailward("queue", "restore", str(archive))
    assert senders(other) == ["ann", "bob", "eve"]


def test_a_gateway_that_does_not_answer_is_not_waited_for_without_end(other, archive, monkeypatch):
    monkeypatch.setattr(console, "_TIMEOUT", 0.1)
    monkeypatch.chdir(other.base / "var")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind("control")
        frozen.listen()
        said = other.mailward("queue", "restore", str(archive), code=1)
    assert "does not answer" in said
    assert "0 messages were added" in said
    assert not (other.base / "var" / "queue").exists()


def test_a_backup_that_fails_leaves_what_was_there(other, archive):
    other.mailward("queue", "backup", str(other.base / "nowhere" / "q.tar"), code=1)
    before = archive.read_bytes()
    (other.base / "var" / "queue" / "shard-0").mkdir(parents=True)
    (other.base / "var" / "queue" / "shard-0" / "queue.db").write_bytes(b"no database")
    assert "damaged" in other.mailward("queue", "backup", str(archive), code=1)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.glob(".q.tar*")] == []


def test_where_no_gateway_has_run_there_is_nothing_to_restore_into(other, archive):
    (other.base / "var").rmdir()
    for command in ("restore", "backup"):
        assert "no gateway has run here" in other.mailward("queue", command, str(archive), code=1)
