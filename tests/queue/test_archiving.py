"""What a dead gateway has left is moved, each message once, wherever it is broken off."""

import contextlib
import itertools
from dataclasses import replace

import apsw
import pytest

from gateway.archiving import Archiving
from gateway.envelope import first_id
from gateway.errors import QueueError
from gateway.message import FileBody, Spool
from gateway.queue import Filter, Finish, Snapshot
from gateway.queue.archive.writer import Manifest, Writer


@pytest.fixture
async def queue(tmp_path, clock, sqlite_queue):
    made = sqlite_queue.SqliteQueue(tmp_path / "here" / "shard-0", clock.time)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def left(tmp_path, clock, sqlite_queue):
    """The shard of another gateway, not open."""
    return sqlite_queue.SqliteQueue(tmp_path / "there" / "shard-0", clock.time)


@pytest.fixture
async def ids(left, entry):
    """Messages in it: a plain one, one that was under way, and one with a large body."""
    await left.open()
    ones = [entry() for _ in range(3)]
    spool = Spool(left.spool_folder)
    spool.write(b"Subject: big\n\n" + b"x" * 300_000)
    ones[2].message = spool.finish()
    for one in ones:
        assert await left.restore(Snapshot(one, 0, 5))
    await left.claim(2e9, 1, {}, 1)
    await left.close()
    return {one.id for one in ones}


async def adopt(queue, left, told=None):
    archiving = Archiving(queue, (told if told is not None else []).append)
    return [row async for row in archiving.calls["archive.adopt"]("ann", str(left.folder))]


async def held_by(queue):
    return {one.id for one in await queue.list(Filter())}


async def test_all_is_moved_and_nothing_left(queue, left, ids):
    told = []
    assert (await adopt(queue, left, told))[-1] == {"added": 3, "known": 0}
    assert await held_by(queue) == ids
    bodies = {len(bytes((await queue.get(id_)).message)) for id_ in ids}
    assert max(bodies) == 300_014
    assert [type((await queue.get(id_)).message.body) for id_ in ids].count(FileBody) == 1
    assert [event.NAME for event in told] == ["message.accepted"] * 3 + ["queue.adopted"]
    assert list((left.folder / "bodies").iterdir()) == []
    await left.open()
    assert await held_by(left) == set()
    await left.close()


async def test_broken_off_before_the_originals_are_gone_it_is_repeated(queue, left, ids, monkeypatch, clock):
    async def broken(*_):
        raise QueueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(type(left), "delete", broken)
        with pytest.raises(QueueError, match="broken"):
            await adopt(queue, left)
    assert await held_by(queue) == ids
    # Meanwhile one is delivered here: it does not come a second time.
    (one, *_) = await queue.claim(clock.time(), 1, {}, 10)
    await queue.finish([Finish(one, [replace(r, state="delivered") for r in one.recipients])])
    assert (await adopt(queue, left))[-1] == {"added": 0, "known": 3}
    assert await held_by(queue) == ids - {one.id}
    await left.open()
    assert await held_by(left) == set()
    await left.close()


async def test_what_cannot_be_stored_stays_where_it_was(queue, left, ids, monkeypatch):
    async def full(*_):
        raise QueueError("full")

    with monkeypatch.context() as patch:
        patch.setattr(type(left), "restore", full)
        with pytest.raises(QueueError, match="full"):
            await adopt(queue, left)
    assert await held_by(queue) == set()
    assert list(queue.spool_folder.iterdir()) == []
    assert (await adopt(queue, left))[-1] == {"added": 3, "known": 0}
    assert await held_by(queue) == ids


async def test_ids_of_finished_messages_do_not_pile_up(queue, entry, clock):
    serial = itertools.count()

    async def finish():
        # An id begins with its time, and this clock is not the machine's.
        await queue.add(entry(id=f"{first_id(clock.time())[:-12]}{next(serial):012x}"))
        (one,) = await queue.claim(clock.time(), 1, {}, 1)
        await queue.finish([Finish(one, [replace(r, state="delivered") for r in one.recipients])])
        return one.id

    old = [await finish() for _ in range(3)]
    clock.advance(7 * 86400.0 - 10)
    recent = await finish()
    clock.advance(100)
    last = await finish()
    assert await queue.known([*old, recent, last]) == {recent, last}
    with contextlib.closing(apsw.Connection(str(queue.folder / "queue.db"))) as file:
        assert file.execute("SELECT count(*) FROM finished").fetchall() == [(2,)]


async def test_a_restore_that_is_broken_off_is_finished_by_another(queue, tmp_path, entry):
    """The commit of each message is its own: what is there is whole, and known."""
    with (tmp_path / "a.tar").open("wb") as out:
        writer = Writer(out, Manifest(1.0, "h", "0"))
        ones = [entry() for _ in range(450)]
        assert all(writer.add(Snapshot(one, 0, 1)) for one in ones)
        writer.end()
    restore = Archiving(queue, lambda _: None).calls["archive.restore"]
    rows = restore("ann", str(tmp_path / "a.tar"), source="a.tar")
    assert await anext(rows) == {"added": 200, "known": 0}
    await rows.aclose()
    assert len(await held_by(queue)) == 200
    rows = [row async for row in restore("ann", str(tmp_path / "a.tar"), source="a.tar")]
    assert rows[-1] == {"added": 250, "known": 200}
    assert await held_by(queue) == {one.id for one in ones}
