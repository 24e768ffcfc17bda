"""Two workers and a supervisor in one process, over real links."""

import asyncio
import contextlib
import socket

import pytest

from gateway.counters import Counters, Mark
from gateway.link import Link
from gateway.queue.slots import Slots
from gateway.testing.fakes import FakeClock
from gateway.workers.sharing import Ledger, SharedCounters, SharedSlots, SoleCounters


class Gateway:
    """What the supervisor holds, and what each worker sees of it."""

    def __init__(self, clock, limit=100, per_destination=100):
        self.counters = Counters(clock)
        self.slots = {one: Slots(lambda: limit, lambda: per_destination) for one in ("local", "remote")}
        self.links = []

    async def worker(self, counters=SharedCounters):
        """Give counters, slots and what ends it."""
        ours, theirs = socket.socketpair()
        ledger = Ledger(self.counters, self.slots)
        supervisor, worker = await Link.open(ours, ledger.calls), await Link.open(theirs, {})
        self.links += [supervisor, worker]

        async def die():
            worker.close()
            await supervisor.lost.wait()
            await asyncio.sleep(0)
            await ledger.release()

        return counters(worker), SharedSlots(worker, "remote"), die


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def gateway(clock):
    made = []

    def make(**limits):
        made.append(Gateway(clock, **limits))
        return made[-1]

    yield make
    for one in made:
        for link in one.links:
            link.close()
        await asyncio.sleep(0)


async def test_hits_and_sessions_are_counted_for_all_workers(gateway):
    shared = gateway()
    (one, _, die), (two, _, _) = await shared.worker(), await shared.worker()
    assert [await counters.hit("k", 60) for counters in (one, two, one)] == [1, 2, 3]
    assert [await counters.take("s", 2) for counters in (one, two, one)] == [True, True, False]
    await two.give("s")
    assert await one.take("s", 2)
    assert not await two.take("s", 2)
    await die()
    assert await two.take("s", 2)
    assert await two.take("s", 2)
    assert not await two.take("s", 2)


async def test_a_worker_gives_back_no_more_than_it_took(gateway):
    shared = gateway()
    (one, _, _), (two, _, _) = await shared.worker(), await shared.worker()
    assert await one.take("s", 1)
    await two.give("s")
    assert not await two.take("s", 1)


async def test_the_only_worker_counts_sessions_itself_and_leaves_what_it_knows_to_the_next(gateway, clock):
    shared = gateway()
    one, _, die = await shared.worker(SoleCounters)
    assert await one.take_each({"all": 2, "client": 1}) == ""
    assert await one.take_each({"all": 2, "client": 1}) == "client"
    assert await one.take("all", 2)
    await one.give_each(["all", "client"])
    assert await one.take_each({"all": 2, "client": 1}) == ""
    assert await shared.counters.take("client", 1)
    assert await one.hit("k", 60) == 1
    await one.mark("down mx.example", 60)
    await die()
    two, _, _ = await shared.worker(SoleCounters)
    assert await two.take("client", 1)
    assert await two.hit("k", 60) == 2
    assert await two.marked("down mx.example") == Mark("down mx.example", clock.time() + 60)


async def test_marks_are_seen_by_all_and_end(gateway, clock):
    shared = gateway()
    (one, _, die), (two, _, _) = await shared.worker(), await shared.worker()
    await one.mark("down mx1.example", 60, "refused")
    await two.mark("down mx2.example", 30)
    await two.mark("other", float("inf"))
    await die()
    assert await two.marked("down mx1.example") == Mark("down mx1.example", clock.time() + 60, "refused")
    assert [mark.key for mark in await two.marks("down ")] == ["down mx1.example", "down mx2.example"]
    clock.advance(30)
    assert [mark.key for mark in await two.marks("down ")] == ["down mx1.example"]
    assert await two.marked("down mx2.example") is None
    await two.unmark("down mx1.example")
    assert await two.marked("down mx1.example") is None
    assert (await two.marks())[0].until == float("inf")


async def test_deliveries_to_one_destination_are_bounded_over_workers_and_freed_by_a_death(gateway):
    shared = gateway(per_destination=2)
    (_, one, die), (_, two, _) = await shared.worker(), await shared.worker()
    assert await one.take("lane", "mx")
    assert await one.take("lane", "mx")
    waiting = [asyncio.create_task(two.take("lane", "mx")) for _ in range(3)]
    assert await two.take("lane", "elsewhere")
    assert not any(task.done() for task in waiting)
    one.give("mx")
    done, rest = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    await die()
    done, rest = await asyncio.wait(rest, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    two.close()
    assert [await task for task in rest] == [False]


async def test_who_waits_for_a_slot_and_dies_takes_none(gateway):
    shared = gateway(per_destination=1)
    (_, one, die), (_, two, _) = await shared.worker(), await shared.worker()
    assert await two.take("lane", "mx")
    waiting = asyncio.create_task(one.take("lane", "mx"))
    await asyncio.sleep(0.01)
    await die()
    two.give("mx")
    async with asyncio.timeout(5):
        assert await two.take("lane", "mx")
    with contextlib.suppress(asyncio.CancelledError):
        assert await waiting is False
