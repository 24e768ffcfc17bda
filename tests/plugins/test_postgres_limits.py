"""postgres_queue: limits that hold over all nodes of one database, and on each node while it is away."""

import asyncio
import time

import pytest
from postgres_server import SECRET, Proxy

from gateway.address import Address
from gateway.configuration import Configuration
from gateway.counters import Counters
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.journal import read
from gateway.message import Message
from gateway.queue import Filter
from gateway.services import Clock
from gateway.testing.fakes import FakeClock
from gateway.worker import Worker

HOUR = 3600.0


@pytest.fixture
async def node(postgres_plugin, database, postgres_server, tmp_path):
    """Give `await node(name)`: a store that is open, and its counters; closed at the end."""
    made = []

    async def make(name, *, port=None, lease=2.0, tell=lambda _: None):
        where = postgres_plugin.links.Database(postgres_server.url_of(database, port=port), SECRET, name)
        store = postgres_plugin.store.PostgresQueue(
            where, tmp_path / name, FakeClock().time, HOUR, lease, tell
        )
        counters = store.counters(Counters(Clock()))
        await store.open()
        made.append(store)
        return store, counters

    yield make
    for one in made:
        if one._lock is not None:
            await one.close()


async def test_hits_and_marks_are_of_all_nodes(node):
    (_, a), (_, b) = await node("a"), await node("b")
    assert [await a.hit("k", HOUR), await b.hit("k", HOUR, 3), await a.hit("k", HOUR, 0)] == [1, 4, 4]
    assert await b.hit("k", 60.0) == 1
    many = await asyncio.gather(*(one.hit("busy", HOUR) for one in (a, b) for _ in range(300)))
    assert sorted(many) == list(range(1, 601))
    long, strange = "x" * 3000, "\udcff"
    assert [await a.hit(long, HOUR), await b.hit(long, HOUR), await b.hit(strange, HOUR)] == [1, 2, 1]
    await a.mark("down x", HOUR, "note")
    await a.mark("down y", 0.0)
    await a.mark("up", HOUR)
    found = await b.marked("down x")
    assert (found.key, found.note) == ("down x", "note")
    assert await b.marked("down y") is None
    assert [one.key for one in await b.marks("down ")] == ["down x"]
    await b.unmark("down x")
    assert await a.marked("down x") is None


async def test_hits_of_the_window_before_count_for_what_it_still_covers(node, postgres_server, database):
    _, a = await node("a")
    for _ in range(10):
        await a.hit("k", HOUR)
    later = "UPDATE mailward.hits SET started = started - {}"
    postgres_server.execute(later.format(1.5 * HOUR), database=database)
    assert await a.hit("k", HOUR, 0) == 5
    postgres_server.execute(later.format(2 * HOUR), database=database)
    assert await a.hit("k", HOUR) == 1


async def test_what_counts_no_more_is_forgotten(node, postgres_server, database):
    store, a = await node("a")
    await a.hit("old", HOUR)
    postgres_server.execute(f"UPDATE mailward.hits SET started = started - {3 * HOUR}", database=database)
    await a.hit("new", HOUR)
    await a.mark("over", 0.0)
    await a.mark("lasts", HOUR)
    await store._tidy()
    keys = "SELECT key FROM mailward.hits UNION ALL SELECT key FROM mailward.mark"
    assert [bytes(key) for (key,) in postgres_server.execute(keys, database=database)] == [b"new", b"lasts"]


async def test_slots_are_of_all_nodes_and_those_of_sessions_of_each(node):
    (_, a), (_, b) = await node("a"), await node("b")
    assert sum(await asyncio.gather(*(one.take("k", 5) for one in (a, b) for _ in range(20)))) == 5
    assert not await a.take("k", 5)
    assert [await a.take("sessions/192.0.2.1", 1), await b.take("sessions/192.0.2.1", 1)] == [True, True]
    _, c = await node("c")
    assert [await c.take("one", 2), await a.take("one", 2), await b.take("one", 2)] == [True, True, False]
    await a.give("one")
    assert await a.take("one", 2)
    assert await a.take_each({"two": 1, "one": 2}) == "one"
    # What is given back goes with the next question, or before it.
    await a.hit("k", HOUR)
    assert await b.take("two", 1)


async def test_slots_of_a_dead_node_are_given_back(node):
    (dead, a), (_, b) = await node("a", lease=1.5), await node("b", lease=1.5)
    assert await a.take("k", 1)
    assert not await b.take("k", 1)
    dead._keeping.cancel()
    async with asyncio.timeout(30):
        while not await b.take("k", 1):  # noqa: ASYNC110 - another node's
            await asyncio.sleep(0.1)


async def test_a_node_counts_for_itself_while_the_database_is_away(
    node, postgres_plugin, postgres_server, monkeypatch
):
    monkeypatch.setattr(postgres_plugin.asking, "PATIENCE", 0.2)
    monkeypatch.setattr(postgres_plugin.asking, "AWAY", 0.2)
    said = []
    async with Proxy(postgres_server.port) as proxy:
        (_, a), (_, b) = await node("a", port=proxy.port, lease=10.0, tell=said.append), await node("b")
        assert [await b.hit("k", HOUR, 10), await a.hit("k", HOUR)] == [10, 11]
        assert await a.take("s", 1)
        proxy.block()
        assert [await a.hit("k", HOUR), await a.hit("k", HOUR)] == [1, 2]
        assert await a.take("s", 1)
        await a.give("s")
        await a.mark("m", HOUR)
        assert await a.marked("m")
        proxy.unblock()
        async with asyncio.timeout(20):
            while await a.hit("k", HOUR) < 10:  # noqa: ASYNC110 - the database's
                await asyncio.sleep(0.05)
        await a.give("s")
        assert len(said) == 2
        async with asyncio.timeout(20):
            while not await b.take("s", 1):  # noqa: ASYNC110 - another node's
                await asyncio.sleep(0.05)


async def test_a_node_that_starts_tells_only_what_it_took_in_itself(node):
    (a, _), (b, _) = await node("a"), await node("b")
    message = Message(b"Subject: t\n", b"\nbody\n")
    for one in (a, b):
        await one.add(entry(message))
    mine = {one: [found.id for found in await one.accepted()] for one in (a, b)}
    assert [len(ids) for ids in mine.values()] == [1, 1]
    assert sorted(mine[a] + mine[b]) == [found.id for found in await a.list(Filter())]


def entry(message, state="queued", birth=1.0):
    recipients = [EntryRecipient(0, Recipient.of("r@x.example"), state)]
    return Entry(new_id(), Address("s@y.example"), message, recipients, birth, size=message.size)


@pytest.fixture
async def gateway(tmp_path, postgres_server, database):
    """Give `await gateway(name)`: a whole gateway on the database, stopped at the end."""
    made = []

    async def make(name):
        folder = tmp_path / name / "conf.d"
        folder.mkdir(parents=True)
        (folder / "site.yaml").write_text(
            f"gateway: {{hostname: {name}.example.org, state: var}}\n"
            "listeners: [{name: mx, protocol: smtp, address: '127.0.0.1:0'}]\n"
            "sqlite_queue: {enabled: false}\n"
            f"postgres_queue: {{database: '{postgres_server.url_of(database)}', password: '{SECRET}'}}\n"
        )
        worker = Worker(Configuration.load(folder))
        await worker.start()
        made.append(worker)
        return worker

    yield make
    await asyncio.gather(*(one.stop() for one in made))


async def test_plugins_of_two_gateways_share_what_they_got_before_the_queue_was_there(gateway):
    a, b = [(await gateway(name)).generation.plugins["remote"].instance.counters for name in ("a", "b")]
    assert [await a.hit("k", HOUR), await b.hit("k", HOUR)] == [1, 2]


async def test_a_gateway_that_starts_tells_nothing_of_what_another_took_in(gateway):
    a = await gateway("a")
    waiting = entry(Message(b"Subject: t\n", b"\nbody\n"), state="held", birth=time.time())
    await a.queue.add(waiting)
    b = await gateway("b")
    assert [one.id for one in await b.queue.list(Filter())] == [waiting.id]
    await b.stop()
    told = [one["event"] for one in read(b.settings.gateway.state / "journal")]
    assert "gateway.started" in told
    assert "message.accepted" not in told
