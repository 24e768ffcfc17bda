"""sqlite_queue: what a crash, a full disk, a damaged file and a second owner do to it."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import FileBody, Message, Spool
from gateway.queue import Filter, Finish, QueueDamaged, QueueError, QueueFull, QueueLocked

PLUGIN = Path(__file__).parents[2] / "plugins" / "sqlite_queue"
CHILD = """
import asyncio, sys, time
sys.path[:0] = [{tests!r}]
from test_sqlite_queue import entry, load, spooled

async def main():
    store = load().SqliteQueue({folder!r}, time.time)
    await store.open()
    await asyncio.gather(*(work(store, n) for n in range(20)))

async def work(store, n):
    while True:
        one = entry(f"r{{n}}@x{{n}}.example", *(["s@y.example"] * (n % 3)))
        if n == 0:
            one.message = spooled(store)
        await store.add(one)
        print(one.id, flush=True)
        if n % 4 == 0:
            await store.claim(time.time(), 3, {{}}, 100)

asyncio.run(main())
"""


def load():
    """Give the plugin's module."""
    if "tested_sqlite_queue" not in sys.modules:
        place = [str(PLUGIN)]
        path = PLUGIN / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            "tested_sqlite_queue", path, submodule_search_locations=place
        )
        sys.modules["tested_sqlite_queue"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["tested_sqlite_queue"])
    return sys.modules["tested_sqlite_queue"]


def entry(*recipients, body=b"\nbody\n"):
    found = [EntryRecipient(i, Recipient.of(one)) for i, one in enumerate(recipients or ["r@x.example"])]
    return Entry(new_id(), Address("s@x.example"), Message(b"A: b\n", body), found, time.time())


def spooled(store):
    spool = Spool(Path(store.spool_folder))
    spool.write(b"A: b\n\n" + b"x" * 300_000)
    return spool.finish()


@pytest.fixture
def make(tmp_path):
    return lambda: load().SqliteQueue(tmp_path / "queue", time.time)


@pytest.fixture
async def store(make):
    made = make()
    await made.open()
    yield made
    await made.close()


async def test_the_plugin_gives_it(chain_of, tmp_path):
    from gateway.hookspecs import Stages

    chain = chain_of("sqlite_queue: {}", "sqlite_queue")
    chain.steps["open_queue"] = tuple(s for s in chain.steps["open_queue"] if s.plugin == "sqlite_queue")
    made = (await chain.ask(Stages.open_queue)).value
    await made.open()
    await made.close()
    assert (tmp_path / "queue" / "shard-0" / "queue.db").is_file()


async def test_kill_loses_nothing_that_was_added(make, tmp_path):
    """Also with claims and half-received bodies around."""
    script = CHILD.format(tests=str(Path(__file__).parent), folder=tmp_path / "queue")
    script = "from pathlib import PosixPath\n" + script
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: ASYNC220 - nothing else runs
        told = [child.stdout.readline().strip() for _ in range(300)]
        child.send_signal(signal.SIGKILL)
        told += [line.strip() for line in child.stdout if len(line) == 37]
    assert len(told) >= 300
    store = make()
    await store.open()
    kept = {one.id: one for one in await store.list(Filter(), limit=100_000)}
    assert set(told) <= kept.keys()
    assert {r.state for one in kept.values() for r in one.recipients} == {"queued"}
    assert list(store.spool_folder.iterdir()) == []
    files = {file.name for file in (store.folder / "bodies").iterdir()}
    for id_ in told:
        message = (await store.get(id_)).message
        assert len(bytes(message)) == message.size
        assert not isinstance(message.body, FileBody) or id_ in files
    assert files <= kept.keys()
    await store.close()


async def test_a_second_owner_is_refused(store, make):
    with pytest.raises(QueueLocked, match=rf"pid {os.getpid()}.*{store.folder}"):
        await make().open()


async def test_the_lock_goes_with_close(make):
    first, second = make(), make()
    await first.open()
    await first.close()
    await second.open()
    await second.close()


async def spoilt(make, change):
    store = make()
    await store.open()
    for _ in range(50):
        await store.add(entry(body=b"\n" + b"y" * 4000))
    await store.close()
    path = store.folder / "queue.db"
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:100],
        lambda _: b"this is no database" * 1000,
        lambda raw: raw[:8192] + os.urandom(4096) + raw[12288:],
    ],
    ids=["empty", "half", "short", "foreign", "garbage"],
)
async def test_a_damaged_file_is_refused_with_advice(make, change):
    path = await spoilt(make, change)
    before = path.read_bytes()
    with pytest.raises(QueueDamaged) as told:
        await make().open()
    assert str(path) in str(told.value)
    assert f"mailward queue salvage {path.parent.with_name('damaged-queue')}" in str(told.value)
    assert path.read_bytes() == before
    path.unlink()
    store = make()
    await store.open()
    await store.close()


async def test_a_large_damaged_file_is_found_beside_the_work_and_takes_nothing_more(make, monkeypatch):
    """To read a million messages takes longer than a gateway may be away."""
    await spoilt(make, lambda raw: raw[:-8192] + os.urandom(4096) + raw[-4096:])
    store = make()
    package = type(store).__module__.rpartition(".")[0]
    monkeypatch.setattr(sys.modules[f"{package}.disk"], "CHECKED_FIRST", 0)
    await store.open()
    await asyncio.wait_for(store._checking, 10)
    with pytest.raises(QueueDamaged, match="queue salvage"):
        await store.add(entry())
    with pytest.raises(QueueDamaged):
        await store.claim(time.time(), 10, {}, 10)
    assert await store.next_due() is not None
    await store.close()


async def test_a_newer_file_is_refused(make):
    store = make()
    await store.open()
    await store.close()
    connection = apsw.Connection(str(store.folder / "queue.db"))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(QueueError, match="newer version"):
        await make().open()


async def test_a_full_disk_refuses_and_recovers_by_itself(store):
    await store.add(entry())

    def limit(pages):
        return lambda shard: shard.connection.execute(f"PRAGMA max_page_count = {pages}").get

    await store._writer.submit(limit(20))
    with pytest.raises(QueueFull):
        await store.add(entry(body=b"\n" + b"z" * 200_000))
    assert len(await store.list(Filter())) == 1
    await store._writer.submit(limit(1_000_000))
    await store.add(entry(body=b"\n" + b"z" * 200_000))
    assert len(await store.list(Filter())) == 2


async def test_new_mail_leaves_room_for_the_ends_of_deliveries(store, monkeypatch):
    """Else a queue that has filled its disk could never get smaller."""
    await store.add(entry())
    disk, left = sys.modules["tested_sqlite_queue.disk"], [1_000_000]
    monkeypatch.setattr(disk, "free", lambda *_: left[0])
    store._looked = 0.0
    with pytest.raises(QueueFull):
        await store.add(entry())
    (one,) = await store.claim(time.time(), 10, {}, 10)
    one.recipients[0].state = "delivered"
    await store.finish([Finish(one, one.recipients)])
    left[0] = 10**9
    await store.add(entry())


async def test_one_bad_call_takes_no_other_with_it(store):
    good, bad = [entry() for _ in range(20)], entry()
    await store.add(bad)
    results = await asyncio.gather(*map(store.add, [*good[:10], bad, *good[10:]]), return_exceptions=True)
    assert [type(one) for one in results if one] == [QueueError]
    assert len(await store.list(Filter())) == 21


async def test_a_body_that_has_no_room_leaves_no_file(store):
    one = entry()
    one.message = spooled(store)
    await store.add(twin := entry())
    one.id = twin.id
    with pytest.raises(QueueError):
        await store.add(one)
    assert one.message.body.path.exists()
    assert list((store.folder / "bodies").iterdir()) == []


async def test_a_body_is_not_lost_to_another_of_the_same_name(store):
    one, twin = entry(), entry()
    one.message, twin.message, twin.id = spooled(store), spooled(store), one.id
    await store.add(one)
    with pytest.raises(QueueError):
        await store.add(twin)
    assert one.message.body.path.exists()


async def test_the_end_of_an_unknown_entry_hangs_nobody(store):
    unknown = entry()
    work = [store.add(entry()), store.finish([Finish(unknown, unknown.recipients)]), store.add(entry())]
    async with asyncio.timeout(5):
        results = await asyncio.gather(*work, return_exceptions=True)
    assert [type(one) for one in results if one] == [QueueError]
    assert len(await store.list(Filter())) == 2


async def test_orphans_are_swept(make):
    store = make()
    await store.open()
    await store.close()
    for name in ("bodies/orphan", "spool/body-1"):
        (store.folder / name).write_bytes(b"x")
    await store.open()
    assert [*(store.folder / "bodies").iterdir(), *store.spool_folder.iterdir()] == []
    await store.close()


async def test_an_entry_that_was_never_whole_is_swept(store):
    await store._writer.submit(lambda shard: shard.add(entry(), 0.0, "receiving"))
    await store.close()
    await store.open()
    count = await store._reader.run(lambda shard: shard._value("SELECT count(*) FROM entry"))
    assert count == 0


async def test_a_caller_who_leaves_does_not_stop_the_commit(store):
    adding = asyncio.create_task(store.add(one := entry()))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await store.add(entry())
    assert await store.get(one.id)
    assert len(await store.claim(time.time(), 10, {}, 10)) == 2


async def test_memory_and_file_take_turns(store):
    """What waits in the file is not starved by what was just added."""
    waiting = entry("a@old.example", "b@old.example")
    await store.add(waiting)
    for _ in range(50):
        await store.add(entry())
    found = await store.claim(time.time(), 10, {}, 100)
    assert waiting.id in {one.id for one in found}
    assert sum(len(one.recipients) for one in found) == 10


async def test_more_than_memory_has_room_for(store, monkeypatch):
    monkeypatch.setattr(sys.modules["tested_sqlite_queue.fresh"], "ENTRIES", 5)
    ids = [(await store.add(one := entry()), one.id)[1] for _ in range(12)]
    found = []
    while some := await store.claim(time.time(), 4, {}, 100):
        found += some
    assert sorted(one.id for one in found) == sorted(ids)
    for one in found:
        one.recipients[0].state = "delivered"
    await store.finish([Finish(one, one.recipients) for one in found])
    assert await store.list(Filter()) == []
