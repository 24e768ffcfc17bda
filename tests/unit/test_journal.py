"""The journal: gap-free over restarts, kills and full disks; safe when flush returns; one line an event."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import JournalError
from gateway.events import (
    DeliveryDelivered,
    DeliveryStarted,
    LimitExceeded,
    MessageAccepted,
    MessageBounced,
    MessageFinished,
    PluginLogged,
    RecipientAccepted,
    SessionClosed,
    SessionOpened,
)
from gateway.journal import Journal, accepted, find, read, render, stories, writer
from gateway.journal.line import LONGEST, dump, stamp

ROOT = Path(__file__).parents[2]


@pytest.fixture
def open_journal(tmp_path):
    opened = []

    def make(**more):
        journal = Journal(tmp_path, "mx", **more)
        opened.append(journal)
        journal.open()
        return journal

    yield make
    for journal in opened:
        journal.close()


def sequences(folder):
    return [one["sequence"] for one in read(folder)]


def files(folder):
    return sorted(folder.glob("*/*.jsonl"))


class Kept:
    """An output that keeps what it gets."""

    name = "kept"

    def __init__(self):
        self.records = []

    def write(self, records):
        self.records += records
        return 0

    def close(self):
        pass


class Disk:
    """Stands in for a disk: every write ends half-way while it is full, as on a real one."""

    def __init__(self, monkeypatch):
        self.full = False
        self._write = os.write
        monkeypatch.setattr("gateway.journal.segments.os.write", self.write)

    def write(self, descriptor, data):
        if not self.full:
            return self._write(descriptor, data)
        if len(data) > 1:
            return self._write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(writer, "RETRY", 0.02)
    return Disk(monkeypatch)


# --- safe when flush returns


async def test_flush_returns_only_after_write_and_fdatasync(open_journal, monkeypatch, tmp_path):
    synced = []
    real = os.fdatasync

    def fdatasync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr("gateway.journal.segments.os.fdatasync", fdatasync)
    journal = open_journal()
    journal.emit(MessageAccepted(message="m1"))
    await journal.flush()
    assert synced == [files(tmp_path)[0].stat().st_size]
    assert accepted(tmp_path, 0) == {"m1"}


async def test_flush_does_not_return_while_the_disk_is_busy(open_journal, monkeypatch):
    busy = threading.Event()
    real = os.fdatasync
    monkeypatch.setattr("gateway.journal.segments.os.fdatasync", lambda fd: (busy.wait(10), real(fd)))
    journal = open_journal()
    journal.emit(MessageAccepted(message="m1"))
    flushing = asyncio.create_task(journal.flush())
    done, _ = await asyncio.wait([flushing], timeout=0.05)
    assert not done
    busy.set()
    await flushing


async def test_one_fsync_serves_many_who_wait(open_journal, monkeypatch):
    count = []
    real = os.fdatasync
    monkeypatch.setattr("gateway.journal.segments.os.fdatasync", lambda fd: (count.append(1), real(fd)))
    journal = open_journal()

    async def one(number):
        journal.emit(MessageFinished(message=str(number)))
        await journal.flush()

    await asyncio.gather(*map(one, range(200)))
    assert len(count) <= 3


async def test_what_nobody_flushes_is_on_disk_within_a_second(open_journal, tmp_path):
    journal = open_journal()
    start = time.monotonic()
    journal.emit(SessionOpened(session="s"))
    while not sequences(tmp_path):
        await asyncio.sleep(0.01)
        assert time.monotonic() - start < 5  # it takes INTERVAL; the machine may be busy


async def test_a_flush_that_was_given_up_disturbs_nobody(open_journal):
    journal = open_journal()
    journal.emit(SessionOpened())
    waiting = asyncio.create_task(journal.flush())
    await asyncio.sleep(0)
    waiting.cancel()
    journal.emit(SessionOpened())
    await journal.flush()


async def test_a_closed_journal_promises_nothing(open_journal):
    journal = open_journal()
    journal.close()
    with pytest.raises(JournalError):
        await journal.flush()


def test_close_writes_what_waits(open_journal, tmp_path):
    journal = open_journal()
    for _ in range(3):
        journal.emit(SessionOpened())
    journal.close()
    assert sequences(tmp_path) == [1, 2, 3]


# --- the sequence has no gap


def test_the_sequence_goes_on_over_restarts(open_journal, tmp_path):
    for _ in range(5):
        journal = open_journal()
        for _ in range(3):
            journal.emit(SessionOpened())
        journal.close()
    assert sequences(tmp_path) == list(range(1, 16))


@pytest.mark.parametrize(
    "torn",
    [b'{"time":"2026', b"\0" * 4096, b'{"sequence":', b"\n\n", b'{"event":"x"}\n', b"\xff\xfe\n{"],
)
def test_a_torn_end_is_cut_and_the_sequence_goes_on(open_journal, tmp_path, torn):
    journal = open_journal()
    journal.emit(SessionOpened())
    journal.emit(SessionOpened())
    journal.close()
    with files(tmp_path)[0].open("ab") as file:
        file.write(torn)
    assert sequences(tmp_path) == [1, 2]  # a reader beside it is not disturbed either
    journal = open_journal()
    journal.emit(SessionOpened())
    journal.close()
    assert sequences(tmp_path) == [1, 2, 3]
    assert [json.loads(line)["sequence"] for line in files(tmp_path)[0].read_bytes().splitlines()] == [
        1,
        2,
        3,
    ]


def test_a_segment_with_nothing_in_it_says_by_its_name_where_to_go_on(open_journal, tmp_path):
    (tmp_path / "shard-0").mkdir()
    (tmp_path / "shard-0" / f"{42:020d}.jsonl").touch()
    journal = open_journal()
    journal.emit(SessionOpened())
    journal.close()
    assert sequences(tmp_path) == [42]


CHILD = """
import asyncio, sys, pathlib
from gateway.events import MessageAccepted, SessionOpened
from gateway.journal import Journal

async def main():
    journal = Journal(pathlib.Path(sys.argv[1]), "mx")
    journal.open()
    async def one(lane):
        for number in range(10**9):
            journal.emit(SessionOpened())
            journal.emit(MessageAccepted(message=f"{sys.argv[2]}.{lane}.{number}"))
            await journal.flush()
            print(f"{sys.argv[2]}.{lane}.{number}", flush=True)
    await asyncio.gather(*map(one, range(8)))

asyncio.run(main())
"""


def test_kill_9_loses_no_fate_that_was_flushed_and_leaves_no_gap(tmp_path):
    promised = set()
    for run in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path, str(run)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(200 + 37 * run):
            promised.add(child.stdout.readline().strip())
        child.send_signal(signal.SIGKILL)
        promised |= {line.strip() for line in child.stdout if line.endswith("\n")}
        child.wait()
    assert len(promised) > 1000
    assert promised <= accepted(tmp_path, 0)
    found = sequences(tmp_path)
    assert found == list(range(1, len(found) + 1))


def test_a_journal_knows_when_it_had_ended(open_journal, tmp_path):
    journal = open_journal(now=lambda: 1000.5)
    assert journal.ended == 0.0
    journal.emit(SessionOpened())
    journal.close()
    with files(tmp_path)[0].open("ab") as file:
        file.write(b'{"torn')
    assert open_journal(now=lambda: 9000.0).ended == 1000.5


def test_two_processes_cannot_write_one_stream(open_journal, tmp_path):
    open_journal()
    with pytest.raises(JournalError, match=rf"another gateway \(pid {os.getpid()}\) uses"):
        Journal(tmp_path, "mx").open()


def test_two_streams_have_sequences_of_their_own_and_are_read_in_the_order_of_time(open_journal, tmp_path):
    times = iter(range(100, 200))
    one = open_journal(stream="shard-0", now=lambda: next(times))
    two = open_journal(stream="shard-1", now=lambda: next(times))
    for journal in (one, two, one, two):
        journal.emit(SessionOpened())
    one.close()
    two.close()
    found = list(read(tmp_path))
    assert [each["time"] for each in found] == sorted(each["time"] for each in found)
    for stream in ("shard-0", "shard-1"):
        assert [each["sequence"] for each in found if each["stream"] == stream] == [1, 2]


async def test_events_of_many_threads_are_all_there(open_journal, tmp_path):
    journal = open_journal()

    def work():
        for _ in range(500):
            journal.emit(SessionOpened())

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    await journal.flush()
    assert sequences(tmp_path) == list(range(1, 2001))


# --- size and age


async def test_segments_are_rotated_by_size_and_the_oldest_go_with_a_count(open_journal, tmp_path):
    journal = open_journal(max_size=40_000)
    for number in range(400):
        journal.emit(MessageAccepted(message=str(number)))
        await journal.flush()
    journal.close()
    found = list(read(tmp_path))
    assert len(files(tmp_path)) > 3
    assert sum(path.stat().st_size for path in files(tmp_path)) < 40_000 + 2 * 40_000 // 8
    assert [one["sequence"] for one in found] == list(range(found[0]["sequence"], found[-1]["sequence"] + 1))
    assert found[0]["sequence"] > 1
    dropped = [one for one in found if one["event"] == "events.dropped"]
    assert dropped
    assert all(one["reason"] == "max_size" and one["count"] > 0 for one in dropped)


async def test_the_size_holds_for_all_streams_together_and_the_oldest_goes_whoever_wrote_it(
    open_journal, tmp_path
):
    old, busy = (open_journal(stream=f"shard-{n}", streams=2, max_size=40_000) for n in (0, 1))
    for journal, count in ((old, 150), (busy, 300)):
        for number in range(count):
            journal.emit(MessageAccepted(message=str(number)))
            await journal.flush()
    whole = sum(path.stat().st_size for path in tmp_path.glob("*/*.jsonl"))
    assert 20_000 < whole < 40_000 + 2 * 40_000 // 8
    left = [one for one in read(tmp_path) if one["stream"] == "shard-0"]
    assert len(left) < 50
    assert left[-1]["sequence"] == 150  # the newest segment stays, for the sequence to go on
    lost = [one["count"] for one in read(tmp_path) if one["event"] == "events.dropped"]
    assert sum(lost) > 150


async def test_what_is_older_than_keep_goes_silently(open_journal, tmp_path):
    clock = [time.time()]
    journal = open_journal(keep=3600.0, now=lambda: clock[0])
    journal.emit(SessionOpened())
    await journal.flush()
    clock[0] += 2 * 86400
    journal.emit(SessionOpened())
    await journal.flush()
    assert [one["event"] for one in read(tmp_path)] == ["session.opened"]
    assert sequences(tmp_path) == [2]


# --- a full disk


async def test_a_full_disk_fails_the_flush_and_nothing_is_lost_when_it_has_room_again(
    disk, open_journal, tmp_path
):
    output = Kept()
    journal = open_journal(outputs=[output])
    journal.emit(MessageAccepted(message="before"))
    await journal.flush()
    disk.full = True
    journal.emit(MessageAccepted(message="while"))
    with pytest.raises(JournalError):
        await journal.flush()
    assert accepted(tmp_path, 0) == {"before"}
    assert files(tmp_path)[0].read_bytes().endswith(b"}\n")
    assert output.records[-1]["event"] == "journal.full"  # told at once, though not on disk
    with pytest.raises(JournalError):
        await journal.flush()
    disk.full = False
    await journal.flush()
    journal.close()
    found = list(read(tmp_path))
    assert accepted(tmp_path, 0) == {"before", "while"}
    assert [one["event"] for one in found[2:]] == ["journal.full", "journal.recovered"]
    assert [one["sequence"] for one in found] == [1, 2, 3, 4]


@pytest.mark.usefixtures("disk")
async def test_a_failed_fsync_is_not_believed_the_second_time(open_journal, monkeypatch, tmp_path):
    real, failures = os.fdatasync, [OSError(errno.EIO, "bad disk")]
    used = []

    def fdatasync(descriptor):
        used.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        if failures and len(used) > 1:
            raise failures.pop()
        real(descriptor)

    monkeypatch.setattr("gateway.journal.segments.os.fdatasync", fdatasync)
    journal = open_journal()
    journal.emit(MessageAccepted(message="1"))
    await journal.flush()
    journal.emit(MessageAccepted(message="2"))
    with pytest.raises(JournalError):
        await journal.flush()
    await journal.flush()
    journal.close()
    assert used[2] != used[1]
    assert accepted(tmp_path, 0) == {"1", "2"}
    assert sequences(tmp_path) == list(range(1, 5))


async def test_when_memory_is_full_too_the_lowest_class_goes_first_and_is_counted(
    disk, open_journal, tmp_path
):
    disk.full = True
    journal = open_journal(room=40)
    journal.emit(MessageAccepted(message="m0"))
    with pytest.raises(JournalError):
        await journal.flush()
    for number in range(30):
        journal.emit(SessionOpened(session=str(number)))
    for number in range(30):
        journal.emit(LimitExceeded(limit=str(number)))
    for number in range(1, 30):
        journal.emit(MessageAccepted(message=f"m{number}"))
    disk.full = False
    await journal.flush()
    journal.close()
    found = list(read(tmp_path))
    assert accepted(tmp_path, 0) == {f"m{number}" for number in range(30)}
    assert not [one for one in found if one["event"] == "session.opened"]
    kept = sum(one["event"] == "limit.exceeded" for one in found)
    dropped = next(one for one in found if one["event"] == "events.dropped")
    assert dropped["reason"] == "journal_full"
    assert dropped["other"] == 30
    assert dropped["security"] >= 30 - kept
    assert "fate" not in dropped
    assert [one["sequence"] for one in found] == list(range(1, len(found) + 1))


async def test_a_fate_that_memory_could_not_keep_fails_the_flush_even_after_recovery(
    disk, open_journal, tmp_path
):
    disk.full = True
    journal = open_journal(room=3)
    for number in range(5):
        journal.emit(MessageAccepted(message=str(number)))
    disk.full = False
    with pytest.raises(JournalError):
        await journal.flush()
    journal.close()
    assert len(accepted(tmp_path, 0)) < 5


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(JournalError, match="journal"):
        Journal(tmp_path / "journal", "mx").open()


# --- whatever the bytes


HOSTILE = st.text(st.characters(codec=None), max_size=60) | st.binary(max_size=60).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | HOSTILE | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(HOSTILE | st.integers(), inner),
    max_leaves=10,
)


@given(HOSTILE, HOSTILE, st.dictionaries(HOSTILE, ANYTHING))
def test_any_text_is_one_line_of_valid_json(recipient, reply, details):
    event = PluginLogged(recipient=recipient, reply=reply, text=recipient + reply, details=details)
    line = dump(stamp(event, 1.0, "mx", "s", 1))
    text = line.decode()
    assert text.endswith("}\n")
    assert len(text.splitlines()) == len(line.splitlines()) == 1
    assert json.loads(line)["event"] == orjson.loads(line)["event"] == "plugin.logged"
    assert not any(ord(one) < 32 or 0x7F <= ord(one) <= 0x9F for one in text[:-1])
    assert not set(text) & set(
        "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def test_ordinary_text_of_any_language_stays_readable():
    line = dump(stamp(PluginLogged(text="Grüße 你好"), 1.0, "mx", "s", 1))
    assert "Grüße 你好".encode() in line


def test_bytes_that_are_no_utf8_are_shown():
    event = PluginLogged(text=b"caf\xe9 \xff".decode("utf-8", "surrogateescape"))
    assert json.loads(dump(stamp(event, 1.0, "mx", "s", 1)))["text"] == "caf\\xe9 \\xff"


def test_a_huge_string_is_cut_and_says_so():
    line = dump(stamp(PluginLogged(text="x" * 10_000_000), 1.0, "mx", "s", 1))
    assert len(line) < 2 * LONGEST
    assert f"[{10_000_000 - LONGEST} more]" in json.loads(line)["text"]


def test_a_value_that_cannot_be_written_does_not_stop_the_journal(open_journal, tmp_path):
    class Rude:
        def __str__(self):
            raise RuntimeError

    journal = open_journal()
    journal.emit(PluginLogged(details={"x": Rude(), "y": 2**80, "z": object}))
    journal.emit(SessionOpened())
    journal.close()
    assert sequences(tmp_path) == [1, 2]


# --- reading


async def test_reading_beside_the_writer_gives_whole_events_only(open_journal, tmp_path):
    journal = open_journal()
    for _ in range(50):
        journal.emit(SessionOpened())
        await journal.flush()
        found = sequences(tmp_path)
        assert found == list(range(1, len(found) + 1))


def test_reading_since_a_time(open_journal, tmp_path):
    clock = [1000.0]
    journal = open_journal(now=lambda: clock[0])
    journal.emit(MessageAccepted(message="old"))
    clock[0] = 2000.0
    journal.emit(MessageAccepted(message="new"))
    journal.close()
    assert accepted(tmp_path, 2000.0) == {"new"}
    assert accepted(tmp_path, 1999.5) == {"new"}
    assert accepted(tmp_path, 0.0) == {"old", "new"}


def test_reading_a_folder_that_is_not_there_gives_nothing(tmp_path):
    assert list(read(tmp_path / "none")) == []


# --- the story


@pytest.fixture
def family(open_journal, tmp_path):
    """One session with two messages; the first one bounces, and the bounce is delivered."""
    journal = open_journal()
    for event in (
        SessionOpened(session="s1", client_ip="192.0.2.1"),
        SessionOpened(session="s2", client_ip="192.0.2.2"),
        RecipientAccepted(session="s1", message="aaa-1", recipient="joe@x.example", sender="ann@y.example"),
        MessageAccepted(session="s1", message="aaa-1", sender="ann@y.example"),
        MessageAccepted(session="s1", message="aab-2", sender="bob@y.example"),
        SessionClosed(session="s1"),
        MessageAccepted(message="bbb-3", parent="aaa-1", origin="bounce"),
        MessageBounced(message="aaa-1", bounce="bbb-3"),
        DeliveryStarted(message="bbb-3", recipient="ann@y.example"),
        DeliveryDelivered(message="bbb-3", recipient="ann@y.example", text="it said \x1b[31m\nred"),
        MessageAccepted(message="ccc-4", sender="other@z.example"),
    ):
        journal.emit(event)
    journal.close()
    return tmp_path


def test_the_story_of_a_message_has_its_session_and_its_births_and_nobody_elses(family):
    (story,) = stories(family, find(family, "aaa-1"))
    assert [one["event"] for one in story.events] == [
        "session.opened",
        "recipient.accepted",
        "message.accepted",
        "session.closed",
        "message.bounced",
    ]
    (birth,) = story.births
    assert (birth.message, birth.parent) == ("bbb-3", "aaa-1")
    assert {one["message"] for one in story.all_events() if "message" in one} == {"aaa-1", "bbb-3"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("aaa", ["aaa-1"]),
        ("aa", ["aaa-1", "aab-2"]),
        ("bob@y.example", ["aab-2"]),
        ("joe@x.example", ["aaa-1"]),
        # The bounce to her is told with what it is the bounce of.
        ("ann@y.example", ["aaa-1"]),
        ("bbb", ["bbb-3"]),
        ("nobody@x.example", []),
    ],
)
def test_a_message_is_found_by_the_beginning_of_its_id_and_by_its_addresses(family, wanted, found):
    assert [story.message for story in stories(family, find(family, wanted))] == found


def test_a_story_is_plain_lines_that_no_event_can_forge(family):
    (story,) = stories(family, find(family, "aaa-1"))
    lines = list(render(story))
    assert lines[0] == "message aaa-1"
    assert any("client.ip=192.0.2.1" in line for line in lines)
    assert any(line.startswith("    message bbb-3, born from aaa-1") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 2 + len(story.all_events())


def test_messages_that_name_each_other_as_parent_do_not_make_an_endless_story(open_journal, tmp_path):
    journal = open_journal()
    journal.emit(MessageAccepted(message="m1", parent="m2"))
    journal.emit(MessageAccepted(message="m2", parent="m1"))
    journal.close()
    (story,) = stories(tmp_path, ["m1"])
    assert [birth.message for birth in story.births] == ["m2"]
    assert story.births[0].births == []


# --- speed


async def test_an_event_costs_little(open_journal):
    journal = open_journal()
    record = {
        "event": "delivery.delivered",
        "message": "m" * 36,
        "recipient": "info@example.org",
        "attempt": 1,
    }
    start, number = time.process_time(), 20_000
    for _ in range(number):
        json.loads(json.dumps(record))
    yardstick, start = time.process_time() - start, time.process_time()
    for _ in range(number // 200):
        for _ in range(200):
            journal.emit(
                DeliveryDelivered(message="m" * 36, recipient="info@example.org", attempt=1, seconds=0.1)
            )
        await journal.flush()
    # Made, stamped, written and fsynced by 200, in CPU time.
    print((time.process_time() - start) / yardstick)
    assert time.process_time() - start < 15 * yardstick
