"""postgres_queue: several nodes on one real database, each of which may die, hang or be cut off."""

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace

import pytest
from postgres_server import SECRET, Proxy

from gateway import Stages
from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.errors import ClaimLost, ConfigError, QueueError, QueueLocked
from gateway.message import FileBody, Message, Spool
from gateway.queue import Filter, Finish
from gateway.testing import Bench
from gateway.testing.fakes import FakeClock

LEASE = 2.0


@pytest.fixture
async def node(postgres_plugin, database, postgres_server, tmp_path):
    """Give `await node(name, port=..., ...)`: a store that is open, closed at the end."""
    made = []

    async def make(name="a", *, port=None, lease=LEASE, user="mail"):
        url = postgres_server.url_of(database, user, port)
        where = postgres_plugin.links.Database(url, SECRET, name)
        one = postgres_plugin.store.PostgresQueue(where, tmp_path / name, FakeClock().time, 3600.0, lease)
        await one.open()
        made.append(one)
        return one

    yield make
    for one in made:
        if one._lock is not None:
            await one.close()


def entry(recipient="r@x.example", message=None, **more):
    message = message or Message(b"Subject: t\n", b"\nbody\n")
    recipients = [EntryRecipient(0, Recipient.of(recipient))]
    return Entry(new_id(), Address("s@y.example"), message, recipients, 1.0, size=message.size, **more)


def large(store):
    spool = Spool(store.spool_folder)
    spool.write(b"Subject: big\n\n" + bytes(range(256)) * 5000)
    return spool.finish()


async def claim(store, limit=100):
    return await store.claim(2e9, limit, {}, 1000)


async def claimed(store, seconds=20):
    """Claim again and again until something comes."""
    found = []
    async with asyncio.timeout(seconds):
        while not found:
            with contextlib.suppress(QueueError):
                found = await claim(store)
            await asyncio.sleep(0.02)
    return found


async def end(store, one, state="delivered", births=()):
    await store.finish([Finish(one, [replace(r, state=state) for r in one.recipients], births)])


async def die(store):
    """End a node as SIGKILL does: nothing is given back."""
    store._keeping.cancel()
    await asyncio.gather(store._keeping, return_exceptions=True)
    await store._writer.stop()
    await store._hang_up()


async def test_what_one_node_accepts_another_delivers(node):
    a, b = await node("a"), await node("b")
    one, big = entry(), entry("big@x.example", large(a))
    content = bytes(big.message)
    await a.add(one)
    await a.add(big)
    found = {one.id: one for one in await claimed(b)}
    while len(found) < 2:
        found |= {one.id: one for one in await claimed(b)}
    assert await claim(a) == []
    assert bytes(found[big.id].message) == content
    assert isinstance(found[big.id].message.body, FileBody)
    for each in found.values():
        await b.confirm(each.id)
        await end(b, each)
    assert await a.list(Filter()) == []
    assert await a.known([one.id, big.id]) == {one.id, big.id}
    assert list((b._folder / "bodies").iterdir()) == []


async def test_recipients_of_one_entry_are_of_one_node(node):
    a, b = await node("a"), await node("b")
    many = entry()
    many.recipients = [EntryRecipient(i, Recipient.of(f"r{i}@x{i}.example")) for i in range(10)]
    await a.add(many)
    (first,) = await claim(a, 4)
    assert await claim(b) == await b.take(Filter()) == []
    for each in first.recipients:
        await a.finish([Finish(first, [replace(each, state="failed")])])
    (second,) = await claimed(b)
    assert len(second.recipients) == 6
    assert len((await b.rest(many.id, [r.number for r in second.recipients])).failures) == 4


async def test_a_hint_wakes_the_others_and_a_poll_finds_what_no_hint_told(node):
    a, b = await node("a", lease=60), await node("b", lease=60)
    woken = asyncio.Event()
    b.listen(woken.set)
    async with asyncio.timeout(20):
        await asyncio.sleep(0.2)
        woken.clear()
        await a.add(entry())
        await woken.wait()  # long before the poll, each 10 s
    await die(a)
    c = await node("c")
    c._notify = None
    c.listen(woken.set)
    woken.clear()
    async with asyncio.timeout(20):
        await woken.wait()


@pytest.mark.slow
async def test_a_dead_node_is_taken_over_and_not_before_its_lease_has_ended(node):
    a, b = await node("a"), await node("b")
    big = entry("big@x.example", large(a))
    await a.add(big)
    (one,) = await claim(a)
    # What it was receiving goes with it.
    await a._bodies.receive(entry("half@x.example", large(a)), 1.0, a._lease.epoch)
    await die(a)
    assert await claim(b) == []
    (again,) = await claimed(b)
    assert (again.id, again.recipients) == (one.id, one.recipients)
    assert len(bytes(again.message)) == len(bytes(large(b)))
    await end(b, again)
    assert (
        await b._reading.run(_count("SELECT (SELECT count(*) FROM entry) + (SELECT count(*) FROM body)")) == 0
    )
    assert await b._reading.run(_count("SELECT count(*) FROM recipient")) == 0


def _count(query):
    async def count(connection):
        return (await (await connection.execute(query)).fetchone())[0]

    return count


@pytest.mark.slow
async def test_a_node_that_was_stopped_gives_nothing_away_when_it_goes_on(node):
    a, b = await node("a"), await node("b")
    await a.add(entry())
    (one,) = await claim(a)
    await a.confirm(one.id)
    assert a.ours(one.id)
    # Stopped: nothing of it runs, the connections stay.
    a._keeping.cancel()
    (again,) = await claimed(b)
    assert not a.ours(one.id)
    with pytest.raises(QueueError):
        await end(a, one)  # its connections were ended, too: what it was in the midst of holds no lock
    a._keeping = asyncio.create_task(a._keep())
    async with asyncio.timeout(20):
        await a._lease.news()
    with pytest.raises(ClaimLost):
        await a.confirm(one.id)
    with pytest.raises(ClaimLost):
        await end(a, one, births=[entry("b@x.example")])
    # It is a node again, and leaves alone what its own former deliveries have not let go.
    await a.add(entry("new@x.example"))
    await b.release_claims([again])
    assert {found.recipients[0].recipient.address for found in await claimed(a)} == {"new@x.example"}
    await a.release_claims([one])
    assert [found.id for found in await claimed(a)] == [one.id]


async def test_a_worker_that_starts_again_takes_its_own_at_once(node):
    a, b = await node("a", lease=60), await node("b", lease=60)
    await a.add(entry())
    (one,) = await claim(a)
    await die(a)
    assert await claim(b) == []
    a = await node("a", lease=60)
    assert [found.id for found in await claim(a)] == [one.id]
    with pytest.raises(QueueLocked):
        await node("a")


@pytest.mark.slow
async def test_a_database_that_hangs_refuses_mail_in_bounded_time_and_loses_none(
    node, postgres_server, monkeypatch
):
    async with Proxy(postgres_server.port) as proxy:
        a, b = await node("a", port=proxy.port), await node("b")
        monkeypatch.setattr(sys.modules["plugin_tests_postgres.links"], "ANSWER", 0.5)
        monkeypatch.setattr(sys.modules["plugin_tests_postgres.writer"], "SETTLED", 0.5)
        kept, lost = entry(), entry("lost@x.example", large(a))
        await a.add(kept)
        (one,) = await claim(a)
        proxy.block()
        async with asyncio.timeout(10):
            for refused in (entry("no@x.example"), lost):
                with pytest.raises(QueueError):
                    await a.add(refused)
            with contextlib.suppress(QueueError):
                assert await claim(a) == []
        assert lost.message.body.path.parent == a.spool_folder
        assert bytes(lost.message)
        (again,) = await claimed(b)
        assert again.id == one.id
        await end(b, again)
        assert not a.ours(one.id)
        proxy.drop()
        proxy.unblock()
        async with asyncio.timeout(20):
            while True:
                try:
                    await a.add(lost)
                    break
                except QueueError:
                    await asyncio.sleep(0.1)
        with pytest.raises(ClaimLost):
            await end(a, one)
        assert [found.id for found in await b.list(Filter(recipient="lost@x.example"))] == [lost.id]


@pytest.mark.parametrize("large_too", [False, True])
async def test_a_lost_answer_to_commit_is_settled_by_looking(node, postgres_server, large_too):
    async with Proxy(postgres_server.port) as proxy:
        a = await node("a", port=proxy.port, lease=30)
        ones = [entry(f"r{i}@x.example") for i in range(3)]
        proxy.swallow = True
        await asyncio.gather(*(a.add(one) for one in ones))
        assert {one.id for one in await a.list(Filter())} == {one.id for one in ones}
        found = await claimed(a)
        born = entry("born@x.example", large(a) if large_too else None)
        proxy.swallow = True
        await asyncio.gather(*(end(a, one) for one in found[1:]), end(a, found[0], births=[born]))
        assert not proxy.swallow
        assert [one.id for one in await a.list(Filter())] == [born.id]


async def test_a_claim_whose_answer_was_lost_is_given_back(node, postgres_server):
    async with Proxy(postgres_server.port) as proxy:
        a = await node("a", port=proxy.port)
        one = entry()
        await a.add(one)
        proxy.words, proxy.swallow = b"WITH RECURSIVE lanes", True
        with pytest.raises(QueueError):
            await claim(a)
        found = []
        async with asyncio.timeout(20):
            while not found:
                try:
                    found = await claim(a)
                except QueueError:
                    await asyncio.sleep(0.05)
        assert [each.id for each in found] == [one.id]


async def test_a_server_that_restarts_is_found_again(node, postgres_server):
    a = await node("a", lease=30)
    await a.add(entry())
    (one,) = await claim(a)
    postgres_server.stop(signal.SIGQUIT)
    with pytest.raises(QueueError):
        await a.add(entry("no@x.example"))
    postgres_server.start()
    async with asyncio.timeout(20):
        while True:
            try:
                await end(a, one)
                break
            except ClaimLost:
                raise
            except QueueError:
                await asyncio.sleep(0.1)
    assert await a.known([one.id]) == {one.id}


async def test_a_server_that_would_forget_is_refused(node, postgres_server):
    postgres_server.stop()
    postgres_server.start("-c", "fsync=off")
    try:
        with pytest.raises(QueueError, match="fsync = off"):
            await node("a")
    finally:
        postgres_server.stop()
        postgres_server.start()


async def test_every_connection_commits_synchronously_whatever_the_server_says(
    node, postgres_server, database
):
    postgres_server.execute(f"ALTER DATABASE {database} SET synchronous_commit TO off")
    a = await node("a")
    assert await a._writer._link.run(_count("SHOW synchronous_commit")) == "on"
    postgres_server.execute(f"ALTER DATABASE {database} SET synchronous_commit TO remote_apply")
    b = await node("b")
    assert await b._writer._link.run(_count("SHOW synchronous_commit")) == "remote_apply"


async def test_a_role_without_rights_hears_what_it_needs_and_leaves_nothing(node, postgres_server, database):
    postgres_server.execute(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'weak') THEN "
        f"CREATE ROLE weak LOGIN PASSWORD '{SECRET}'; END IF; END $$"
    )
    with pytest.raises(QueueError, match="CREATE SCHEMA mailward AUTHORIZATION"):
        await node("a", user="weak")
    assert postgres_server.execute(
        "SELECT count(*) FROM pg_namespace WHERE nspname = 'mailward'", database=database
    ) == [(0,)]
    await node("b")
    with pytest.raises(QueueError, match="permission denied"):
        await node("a", user="weak")


async def test_nodes_that_start_together_migrate_once_and_a_newer_schema_is_left_alone(
    node, postgres_server, database
):
    stores = await asyncio.gather(*(node(name) for name in "abcd"))
    await asyncio.gather(*(one.close() for one in stores))
    postgres_server.execute("INSERT INTO mailward.migration VALUES (99)", database=database)
    with pytest.raises(QueueError, match="newer version"):
        await node("a")
    postgres_server.execute("DROP TABLE mailward.recipient, mailward.body", database=database)
    postgres_server.execute("DELETE FROM mailward.migration WHERE number = 99", database=database)
    a = await node("a")
    with pytest.raises(QueueError, match="no whole schema"):
        await a.add(entry())


async def test_settings_open_the_store(tmp_path, postgres_server, database):
    bench = Bench(tmp_path)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    conf = (
        f"postgres_queue: {{database: '{postgres_server.url_of(database)}', password_file: secret}}\n"
        "sqlite_queue: {enabled: false}\n"
    )
    made = bench.build(conf)
    assert made.order["open_queue"] == ["postgres_queue"]
    store = (await made.chain.ask(Stages.open_queue)).value
    await store.open()
    assert store.shared
    one = entry()
    await store.add(one)
    assert [found.id for found in await store.list(Filter())] == [one.id]
    await store.close()
    with pytest.raises(ConfigError, match="database"):
        bench.build("postgres_queue: {}\nsqlite_queue: {enabled: false}\n")
