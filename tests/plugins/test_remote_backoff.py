"""remote: addresses that do not answer are left alone, as by qmail-tcpto."""

import asyncio
import json
import socket
import sys

import pytest

from gateway import Address, Delivery, Entry, EntryRecipient, Message, Recipient, Route, Stages
from gateway.smtp import Connection, Timeouts
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
PREFIX = "remote.backoff "


@pytest.fixture
async def full():
    """Give the port of an address that answers no connection: its queue of those is full."""
    with socket.socket() as host:
        host.bind(("127.0.0.1", 0))
        host.listen(0)
        fillers = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(host.getsockname())
            fillers.append(one)
        yield host.getsockname()[1]
        for one in fillers:
            one.close()


@pytest.fixture
def silent(monkeypatch):
    """Give the port of an address that answers no connection, without a wait for it."""
    dial = Connection._dial

    async def dialled(connection, sources):
        if connection.target.port == 1:
            raise TimeoutError
        await dial(connection, sources)

    monkeypatch.setattr(Connection, "_dial", dialled)
    return 1


@pytest.fixture
async def remote(chain_of):
    """Give `remote(*ports)`: a function that delivers to the first of these that will do."""
    chains = []

    def build(*ports, timeout=30):
        hosts = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        chain = chain_of(f'remote: {{routes: {{"": {{hosts: [{hosts}]}}}}}}\n', "remote")
        chains.append(chain)
        plugin = chain.steps["deliver"][0].call.__self__
        plugin._connector._timeouts = Timeouts(connect=timeout)
        chain.counters = plugin.counters

        async def deliver():
            rows = (EntryRecipient(0, Recipient.of("u@x.example")),)
            entry = Entry("entry-1", Address("s@me.example"), MESSAGE, list(rows), 0.0)
            answer = await chain.ask_plugin(
                "remote",
                Stages.deliver,
                Delivery("d-1", entry, Route("remote", "remote"), rows, entry.sender),
            )
            assert not answer.failed, chain.emitted
            return answer.value[0]

        deliver.chain = chain
        return deliver

    yield build
    for chain in chains:
        await chain.ask_plugin("remote", Stages.shutdown)


async def known(deliver):
    """Give what is remembered: address -> connections in vain."""
    marks = await deliver.chain.counters.marks(PREFIX)
    return {mark.key.removeprefix(PREFIX): json.loads(mark.note)["tries"] for mark in marks}


async def test_a_connection_that_nobody_answers_is_remembered(remote, full):
    deliver = remote(full, timeout=0.1)
    assert "no connection in time" in (await deliver()).text
    assert await known(deliver) == {f"127.0.0.1:{full}": 1}


async def test_an_address_rests_after_two_connections_in_vain(remote, silent, clock):
    deliver = remote(silent)
    address = f"127.0.0.1:{silent}"
    steps = [
        # Seconds that pass, whether it is tried, tries that count then.
        (0, True, 1),
        (119, True, 1),
        (1, True, 2),
        (3839, False, 2),
        (2000, True, 3),
        (3839, False, 3),
    ]
    for seconds, tried, count in steps:
        clock.advance(seconds)
        outcome = await deliver()
        assert (outcome.result, outcome.status) == ("deferred", "4.4.1")
        assert ("left alone" in outcome.text) is not tried, (seconds, outcome.text)
        assert await known(deliver) == {address: count}


async def test_the_next_address_is_tried_at_once(remote, silent, clock):
    async with ScriptedHost() as host:
        deliver = remote(silent, host.port)
        for _ in range(3):
            clock.advance(130)
            assert (await deliver()).result == "delivered"
            await deliver.chain.ask_plugin("remote", Stages.shutdown)
        assert len(host.contents) == 3
    assert await known(deliver) == {f"127.0.0.1:{silent}": 2}


@pytest.mark.parametrize("greeting", ["220 hi", "554 5.7.1 go away", None])
async def test_whatever_an_address_answers_it_is_there(remote, clock, greeting):
    async with ScriptedHost({"greeting": greeting}) as host:
        deliver = remote(host.port)
        note = json.dumps({"tries": 1, "last": clock.time() - 600, "until": 0.0})
        await deliver.chain.counters.mark(f"{PREFIX}127.0.0.1:{host.port}", 60, note)
        await deliver()
    assert await known(deliver) == {}


async def test_a_refused_connection_is_an_answer(remote):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        deliver = remote(one.getsockname()[1])
        assert (await deliver()).status == "4.4.1"
    assert await known(deliver) == {}


async def test_once_it_is_forgotten_it_is_tried(remote, silent, clock):
    deliver = remote(silent)
    for _ in range(2):
        await deliver()
        clock.advance(130)
    assert "left alone" in (await deliver()).text
    for mark in await deliver.chain.counters.marks(PREFIX):
        await deliver.chain.counters.unmark(mark.key)
    assert "no connection in time" in (await deliver()).text


def test_the_rest_is_that_of_qmail(chain_of):
    chain_of("", "remote")
    backoff = [module for key, module in sys.modules.items() if "remote" in key and key.endswith(".backoff")][
        -1
    ]
    trouble = None
    for number in range(1, 15):
        trouble = backoff.after_timeout(trouble, number * 1000.0, 4000.0)
        assert trouble.tries == min(number, 10)
    assert (backoff.REST, backoff.REST + backoff.SPREAD) == (60 * 64, (60 + 31) * 64)


async def test_deliveries_at_a_time_count_once(remote, silent):
    deliver = remote(silent)
    await asyncio.gather(*[deliver() for _ in range(5)])
    assert list((await known(deliver)).values()) == [1]
