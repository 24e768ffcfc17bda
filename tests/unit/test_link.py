import asyncio
import contextlib
import socket

import pytest

from gateway.errors import ConfigError, ControlError, LinkLost
from gateway.link import WINDOW, Link


@contextlib.asynccontextmanager
async def linked(**calls):
    """Give the asking end of a link whose other end has these calls, and that one."""
    one, other = socket.socketpair()
    asking, answering = await Link.open(one, {}), await Link.open(other, calls)
    yield asking, answering
    asking.close()
    answering.close()
    await asking.lost.wait()


async def test_a_call_gives_the_value_and_arguments_arrive_as_they_were():
    async def later(**given):
        await asyncio.sleep(0)
        return given

    async with linked(now=lambda n: n + 1, later=later) as (link, _):
        assert await link.call("now", n=1) == 2
        odd = {"text": "\udcff \u2028\n", "list": [1, None, True], "big": "x" * 300_000}
        assert await link.call("later", **odd) == odd


async def test_calls_go_both_ways_and_answers_come_in_their_own_time():
    go = asyncio.Event()

    async def slow():
        await go.wait()
        return "slow"

    one, other = socket.socketpair()
    left, right = await Link.open(one, {"slow": slow}), await Link.open(other, {"quick": lambda: "quick"})
    waiting = asyncio.create_task(right.call("slow"))
    assert await left.call("quick") == "quick"
    assert not waiting.done()
    go.set()
    assert await waiting == "slow"
    left.close()
    await right.lost.wait()


async def test_what_the_other_side_raises_is_raised_here():
    def refuse():
        raise ConfigError("conf.d/1.yaml:3: wrong")

    def broken():
        raise ZeroDivisionError

    async with linked(refuse=refuse, broken=broken, one=lambda n: n) as (link, _):
        with pytest.raises(ConfigError, match=r"conf.d/1.yaml:3: wrong"):
            await link.call("refuse")
        with pytest.raises(ControlError, match="ZeroDivisionError"):
            await link.call("broken")
        with pytest.raises(ControlError, match="not understood"):
            await link.call("one", m=1)
        with pytest.raises(ControlError, match="not understood"):
            await link.call("nothing")
        assert await link.call("one", n=1) == 1


async def test_rows_come_one_by_one_and_a_slow_asker_holds_them_up():
    made = []

    async def rows(count):
        for number in range(count):
            made.append(number)
            yield number

    async with linked(rows=rows) as (link, _):
        assert [row async for row in link.rows("rows", count=3 * WINDOW)] == list(range(3 * WINDOW))
        made.clear()
        stream = link.rows("rows", count=100 * WINDOW)
        assert await anext(stream) == 0
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(made) <= WINDOW + 1
        await stream.aclose()


async def test_who_leaves_is_sent_no_more_and_what_made_the_rows_is_closed():
    closed = asyncio.Event()

    async def rows():
        try:
            while True:
                yield "row"
        finally:
            closed.set()

    async with linked(rows=rows) as (link, _):
        stream = link.rows("rows")
        assert await anext(stream) == "row"
        await stream.aclose()
        await asyncio.wait_for(closed.wait(), 5)


async def test_when_the_other_end_is_gone_who_waits_hears_it_and_its_work_ends():
    cancelled = asyncio.Event()

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with linked(forever=forever) as (link, other):
        waiting = asyncio.create_task(link.call("forever"))
        await asyncio.sleep(0.01)
        other.close()
        with pytest.raises(LinkLost):
            await waiting
        await asyncio.wait_for(cancelled.wait(), 5)
        with pytest.raises(LinkLost):
            await link.call("forever")
        link.tell("forever")


async def test_a_line_without_an_end_ends_the_link(monkeypatch):
    monkeypatch.setattr("gateway.link.LONGEST", 1000)
    one, other = socket.socketpair()
    link = await Link.open(one, {})
    other.sendall(b"[" * 1001)
    await asyncio.wait_for(link.lost.wait(), 5)
    other.close()


async def test_calls_of_one_turn_are_one_write(monkeypatch):
    async with linked(add=lambda n: n) as (link, _):
        writes = []
        monkeypatch.setattr(link, "_transport", Recorder(link._transport, writes))
        assert await asyncio.gather(*(link.call("add", n=n) for n in range(50))) == list(range(50))
        assert len(writes) == 1


class Recorder:
    def __init__(self, transport, writes):
        self._transport = transport
        self._writes = writes

    def write(self, data):
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)
