"""sqlite_queue: what can be read of a damaged shard, and what is said of the rest."""

import asyncio
import errno
import fcntl
import io
import os
import random
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from test_sqlite_queue import PLUGIN, entry, load, spooled

from gateway.envelope import EntryRecipient, Recipient
from gateway.queue import Filter, Finish, QueueDamaged, QueueError, QueueLocked

PAGE = 4096
MESSAGES = 150


def described(snapshot):
    """Give all of a snapshot that a restore must bring back."""
    entry = snapshot.entry
    there = [(one.number, one.recipient.original, one.state, one.due) for one in entry.recipients]
    return (
        bytes(entry.message),
        entry.sender,
        entry.birth,
        snapshot.numbers,
        snapshot.delivered,
        sorted(there),
    )


class Found:
    """What a salvage finds; nothing in the shard's folder may change by it."""

    def __init__(self, folder):
        before = {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        with load().SqliteQueue(folder, time.time).wreck(folder) as wreck:
            for _ in wreck.read():
                pass
            self.messages = {one.entry.id: described(one) for one in wreck.snapshots()}
            self.losses = list(wreck.losses())
            self.finished = dict(wreck.finished())
            self.sure = wreck.sure
        assert {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()} == before

    def lost(self):
        return {one.id for one in self.losses if not one.saved}


def body(number):
    """Give a body of one row, of several pages, or of many."""
    return b"\n" + random.Random(number).randbytes([100, 3000, 20000][number % 3]).hex().encode()


@pytest.fixture
async def shard(tmp_path):
    """Give the folder of a shard with messages of one and of several recipients; some have ended."""
    folder = tmp_path / "queue" / "shard-0"
    store = load().SqliteQueue(folder, time.time)
    await store.open()
    made = [
        entry(*(f"r{n}-{i}@d{n % 7}.example" for i in range(1 + n % 3)), body=body(n))
        for n in range(MESSAGES)
    ]
    await asyncio.gather(*map(store.add, made))
    ended = await store.claim(time.time(), 30, {}, 5)
    done = [Finish(one, [replace(r, state="delivered") for r in one.recipients]) for one in ended]
    await store.finish(done)
    await store.close()
    return folder


def spoil(folder, *pages, by=os.urandom):
    with (folder / "queue.db").open("r+b") as file:
        for number in pages:
            file.seek((number - 1) * PAGE)
            file.write(by(PAGE))


async def test_of_a_whole_shard_all_is_found_and_nothing_else(shard):
    found = Found(shard)
    assert found.losses == []
    assert found.sure
    assert 0 < len(found.finished) < MESSAGES
    assert not found.finished.keys() & found.messages.keys()
    store = load().SqliteQueue(shard, time.time)
    (view,) = store.views()
    with view:
        assert found.messages == {one.entry.id: described(one) for one in view.snapshots()}


@pytest.mark.parametrize(
    "by", [os.urandom, bytes, lambda size: b"\xff" * size], ids=["noise", "zeros", "ones"]
)
@pytest.mark.parametrize("number", [1, 2, 3], ids=["header", "root of entries", "root of ids"])
async def test_a_page_that_only_leads_to_others_costs_nothing(shard, number, by):
    whole = Found(shard)
    spoil(shard, number, by=by)
    found = Found(shard)
    assert found.messages == whole.messages
    assert found.finished == whole.finished
    assert found.losses == []


@pytest.mark.parametrize("by", [os.urandom, bytes], ids=["noise", "zeros"])
async def test_each_damaged_page_costs_what_is_on_it_and_that_is_named(shard, by):
    whole = Found(shard)
    good = (shard / "queue.db").read_bytes()
    count = len(good) // PAGE
    chosen = random.Random(7)
    for _ in range(5):
        spoil(shard, *chosen.sample(range(1, count + 1), 3), by=by)
        found = Found(shard)
        gone = whole.messages.keys() - found.messages.keys()
        # A page holds some thirty messages at the most, most of them one or none.
        assert len(gone) <= 100
        assert found.messages.keys() <= whole.messages.keys()
        in_part = {one.id for one in found.losses if one.saved}
        for id_ in found.messages.keys() - in_part:
            assert found.messages[id_] == whole.messages[id_]
        assert all(found.messages[id_][0] == whole.messages[id_][0] for id_ in in_part)
        assert found.lost() == gone or not found.sure
        (shard / "queue.db").write_bytes(good)


async def test_whatever_bytes_are_changed_it_is_read_to_its_end(shard):
    good = (shard / "queue.db").read_bytes()
    chosen = random.Random(3)
    for count in [1, 10, 100, 1000] * 2:
        raw = bytearray(good)
        for _ in range(count):
            raw[chosen.randrange(len(raw))] = chosen.randrange(256)
        (shard / "queue.db").write_bytes(raw)
        found = Found(shard)
        assert len(found.messages) <= MESSAGES
        assert all(1 <= len(one[-1]) <= 3 for one in found.messages.values())


async def test_what_is_cut_off_is_lost_and_the_rest_is_not(shard):
    whole = Found(shard)
    good = (shard / "queue.db").read_bytes()
    (shard / "queue.db").write_bytes(good[: len(good) // 2 + 100])
    found = Found(shard)
    assert len(found.messages) > MESSAGES // 5
    in_part = {one.id for one in found.losses if one.saved}
    assert all(found.messages[id_] == whole.messages[id_] for id_ in found.messages.keys() - in_part)
    assert not found.sure


async def test_a_lost_text_is_named_with_its_sender_and_who_waited(tmp_path):
    store = load().SqliteQueue(tmp_path / "shard-0", time.time)
    await store.open()
    one = entry("ann@x.example", "bob@x.example", body=b"\n" + b"z" * 50_000)
    await store.add(one)
    await store.close()
    good = (store.folder / "queue.db").read_bytes()
    spoil(store.folder, good.index(b"z" * 3000) // PAGE + 3)
    found = Found(store.folder)
    assert found.messages == {}
    (loss,) = found.losses
    assert (loss.id, loss.sender, loss.missing) == (one.id, "s@x.example", "its text")
    assert loss.recipients == ["ann@x.example", "bob@x.example"]
    assert found.sure


async def test_a_message_some_of_whose_recipients_are_lost_is_saved_for_the_others(tmp_path):
    store = load().SqliteQueue(tmp_path / "shard-0", time.time)
    await store.open()
    one = entry(*(f"a-rather-long-name-{n}@list.example" for n in range(200)))
    await store.add(one)
    await store.close()
    good = (store.folder / "queue.db").read_bytes()
    spoil(store.folder, good.rindex(b"a-rather-long-name-3@") // PAGE + 1)
    found = Found(store.folder)
    (loss,) = found.losses
    left = len(found.messages[one.id][-1])
    assert 100 < left < 200
    assert (loss.id, loss.missing, loss.saved) == (one.id, f"{200 - left} of its 200 recipients", True)


@pytest.mark.parametrize("change", ["cut", "gone"])
async def test_a_body_beside_the_shard_is_taken_only_when_it_is_whole(tmp_path, change):
    store = load().SqliteQueue(tmp_path / "shard-0", time.time)
    await store.open()
    both = [entry(), entry()]
    for one in both:
        one.message = spooled(store)
        await store.add(one)
    await store.close()
    path = store.folder / "bodies" / both[0].id
    if change == "cut":
        os.truncate(path, 5)
    else:
        path.unlink()
    found = Found(store.folder)
    assert found.messages.keys() == {both[1].id}
    (loss,) = found.losses
    assert loss.id == both[0].id
    assert str(path) in loss.missing


async def test_states_are_kept_and_who_had_it_does_not_get_it_again(tmp_path):
    store = load().SqliteQueue(tmp_path / "shard-0", time.time)
    await store.open()
    one = entry("had@x.example", "held@x.example", "later@x.example")
    one.recipients[1] = EntryRecipient(1, Recipient.of("held@x.example"), "held")
    await store.add(one)
    (taken,) = await store.claim(time.time(), 10, {}, 10)
    later = time.time() + 1000
    ends = [
        replace(taken.recipients[0], state="delivered"),
        replace(taken.recipients[1], state="queued", due=later),
    ]
    await store.finish([Finish(taken, ends)])
    await store.close()
    spoil(store.folder, 1)
    (saved,) = Found(store.folder).messages.values()
    there = {original: (state, due) for _, original, state, due in saved[-1]}
    assert there.keys() == {"held@x.example", "later@x.example"}
    assert there["held@x.example"][0] == "held"
    assert there["later@x.example"] == ("queued", later)
    assert saved[-2] == 1


async def logged(folder):
    """Make a shard whose messages are in its log alone, one a transaction, as a kill leaves it."""
    store = load().SqliteQueue(folder, time.time)
    await store.open()
    made = [entry(f"r{n}@x.example", body=body(3 * n)) for n in range(20)]
    for one in made:
        await store.add(one)
    copy = folder.with_name("killed")
    shutil.copytree(folder, copy)
    await store.close()
    (copy / "queue.db-shm").unlink()
    return copy, {one.id for one in made}


async def test_a_log_is_needed_and_read(tmp_path):
    folder, made = await logged(tmp_path / "shard-0")
    found = Found(folder)
    assert found.messages.keys() == made
    assert found.losses == []
    assert found.sure


@pytest.mark.parametrize("where", [0, 24 + PAGE, 10 * (24 + PAGE)], ids=["header", "second", "middle"])
async def test_garbage_in_the_log_is_refused_and_what_stands_behind_it_is_found(tmp_path, where):
    """SQLite itself would drop all that stands behind the garbage, and say nothing."""
    folder, made = await logged(tmp_path / "shard-0")
    with (folder / "queue.db-wal").open("r+b") as file:
        file.seek(where)
        file.write(os.urandom(200))
    with pytest.raises(QueueDamaged, match="committed messages stand behind"):
        await load().SqliteQueue(folder, time.time).open()
    found = Found(folder)
    assert found.messages.keys() <= made
    assert len(found.messages) >= len(made) - 3
    assert not found.sure


async def test_a_commit_that_a_power_cut_has_torn_is_no_damage(tmp_path):
    folder, made = await logged(tmp_path / "shard-0")
    log = folder / "queue.db-wal"
    os.truncate(log, log.stat().st_size - 100)
    store = load().SqliteQueue(folder, time.time)
    await store.open()
    assert len(await store.list(Filter())) == len(made) - 1
    await store.close()


async def test_a_damaged_file_is_not_changed_by_the_refusal_nor_is_its_log(tmp_path):
    folder, _ = await logged(tmp_path / "shard-0")
    spoil(folder, 2)
    with (folder / "queue.db").open("r+b") as file:
        file.truncate(PAGE)
    os.truncate(folder / "queue.db-wal", 32 + 5 * (24 + PAGE))
    before = {name: (folder / name).read_bytes() for name in ("queue.db", "queue.db-wal")}
    with pytest.raises(QueueDamaged):
        await load().SqliteQueue(folder, time.time).open()
    assert {name: (folder / name).read_bytes() for name in before} == before


async def test_what_was_saved_before_is_not_written_over(shard):
    """The second time there are other names to type."""
    spoil(shard, 2)
    shard.with_name("damaged-shard-0").mkdir()
    shard.with_name("damaged-shard-0-1.tar").touch()
    with pytest.raises(QueueDamaged) as told:
        await load().SqliteQueue(shard, time.time).open()
    assert f"mv {shard} {shard.parent}/damaged-shard-0-2\n" in str(told.value)
    assert f"restore {shard.parent}/damaged-shard-0-2.tar" in str(told.value)


async def test_a_shard_that_somebody_works_in_is_refused(shard):
    with (shard / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(QueueLocked, match="stop it first"):
            load().SqliteQueue(shard, time.time).wreck(shard)


async def test_what_is_no_shard_is_refused(tmp_path):
    store = load().SqliteQueue(tmp_path / "shard-0", time.time)
    with pytest.raises(QueueError, match="is no shard"):
        store.wreck(tmp_path)
    (tmp_path / "queue.db").write_bytes(b"this is no database" * 1000)
    with store.wreck(tmp_path / "queue.db") as wreck:
        assert list(wreck.read()) == []
        assert list(wreck.snapshots()) == []
        assert not wreck.sure


async def test_a_file_of_another_version_is_refused(shard):
    with (shard / "queue.db").open("r+b") as file:
        file.seek(60)
        file.write((99).to_bytes(4, "big"))
    with pytest.raises(QueueError, match="newer version"):
        load().SqliteQueue(shard, time.time).wreck(shard)


async def test_what_the_disk_cannot_read_is_damage_and_costs_what_is_on_it(shard, monkeypatch):
    """As a disk with a bad sector answers: EIO for some pages, also to SQLite."""
    whole = Found(shard)
    number = (shard / "queue.db").read_bytes().index(b"r44-2@") // PAGE + 1
    package = type(load().SqliteQueue(shard, time.time)).__module__.rpartition(".")[0]
    pages = sys.modules[f"{package}.pages"].Pages
    monkeypatch.setattr(pages, "__init__", _with_a_bad_sector(pages.__init__, number))
    found = Found(shard)
    assert 0 < len(found.messages) < len(whole.messages)
    assert found.lost() | {one.id for one in found.losses if one.saved}


async def test_a_first_page_that_the_disk_cannot_read_costs_nothing(shard, monkeypatch):
    whole = Found(shard)

    class Disk(io.FileIO):
        def readinto(self, buffer):
            if self.tell() < PAGE:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    opened = Path.open

    def on_the_disk(self, mode="r", *rest, **more):
        if self.name == "queue.db" and mode == "rb":
            return io.BufferedReader(Disk(self), PAGE)
        return opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", on_the_disk)
    found = Found(shard)
    assert found.messages == whole.messages
    assert found.losses == []


def _with_a_bad_sector(init, number):
    class File:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size):
            if self.file.tell() == (number - 1) * PAGE:
                raise OSError(errno.EIO, "Input/output error")
            return self.file.read(size)

    def opened(self, path):
        init(self, path)
        self._file = self._over = File(self._file)

    return opened


def test_a_page_that_sqlite_cannot_read_is_damage():
    package = type(load().SqliteQueue(PLUGIN, time.time)).__module__.rpartition(".")[0]
    translated = sys.modules[f"{package}.writer"].translated
    error = apsw.IOError("disk I/O error")
    error.extendedresult = apsw.SQLITE_IOERR_READ
    assert isinstance(translated(error), QueueDamaged)
    error.extendedresult = apsw.SQLITE_IOERR_FSYNC
    assert not isinstance(translated(error), QueueDamaged)
