"""What the workers of one gateway share lives with the supervisor: counters, marks, slots of deliveries.

A worker asks over its link and sees the usual interfaces. What a worker held when it died is given back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from gateway.counters import Counters, Mark
from gateway.errors import LinkLost
from gateway.queue.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.link import Call, Link


class SharedCounters(Counters):
    """Counters as a worker has them."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def hit(self, key: str, window: float, amount: int = 1) -> int:
        """Count, and give the hits of the last `window` seconds."""
        count: int = await self._link.call("hit", key=key, window=window, amount=amount)
        return count

    async def take(self, key: str, limit: int) -> bool:
        """Take one of `limit` slots; False when all are taken, or when this gateway ends."""
        try:
            taken: bool = await self._link.call("take", key=key, limit=limit)
        except LinkLost:
            return False
        return taken

    async def give(self, key: str) -> None:
        """Give a slot back."""
        self._link.tell("give", key=key)

    async def take_each(self, wanted: Mapping[str, int]) -> str:
        """Take a slot of each key, or none; all are taken when this gateway ends."""
        try:
            over: str = await self._link.call("take_each", wanted=wanted)
        except LinkLost:
            return next(iter(wanted))
        return over

    async def give_each(self, keys: Sequence[str]) -> None:
        """Give a slot of each key back."""
        self._link.tell("give_each", keys=keys)

    async def mark(self, key: str, seconds: float, note: str = "") -> None:
        """Set a mark for so many seconds from now."""
        await self._link.call("mark", key=key, seconds=seconds, note=note)

    async def marked(self, key: str) -> Mark | None:
        """Give the mark of a key while it lasts."""
        found = await self._link.call("marked", key=key)
        return None if found is None else Mark(*found)

    async def unmark(self, key: str) -> None:
        """Take a mark away before its time."""
        await self._link.call("unmark", key=key)

    async def marks(self, prefix: str = "") -> list[Mark]:
        """Give the marks that last, sorted, whose key begins so."""
        return [Mark(*one) for one in await self._link.call("marks", prefix=prefix)]


class SoleCounters(SharedCounters):
    """Counters as the only worker has them: what its slots count ends with it, so these stay here."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._slots = {}

    take, give = Counters.take, Counters.give
    take_each, give_each = Counters.take_each, Counters.give_each


class SharedSlots(Slots):
    """The slots of one channel as a worker has them; lanes of all workers have their turns together."""

    def __init__(self, link: Link, channel: str) -> None:
        self._link = link
        self._channel = channel
        self._waiting: set[asyncio.Task[bool]] = set()
        self._closed = False

    async def take(self, lane: str, destination: str) -> bool:
        """Wait for a slot; False when the slots were closed meanwhile."""
        if self._closed:
            return False
        asking = self._link.call("slot", channel=self._channel, lane=lane, destination=destination)
        task: asyncio.Task[bool] = asyncio.get_running_loop().create_task(asking)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        try:
            return await task
        except LinkLost:
            return False
        except asyncio.CancelledError:
            if not self._closed:
                raise
            return False

    def give(self, destination: str) -> None:
        """Give a slot back."""
        self._link.tell("free", channel=self._channel, destination=destination)

    def close(self) -> None:
        """Send all that wait away; what they are given meanwhile goes back when this worker ends."""
        self._closed = True
        for task in self._waiting:
            task.cancel()


class Ledger:
    """The supervisor's end for one worker: its calls, and what it holds."""

    def __init__(self, counters: Counters, slots: Mapping[str, Slots]) -> None:
        self._counters = counters
        self._slots = slots
        self._held: Counter[str] = Counter()
        self._delivering: Counter[tuple[str, str]] = Counter()
        self.calls: dict[str, Call] = {
            "hit": counters.hit,
            "take": self._take,
            "give": self._give,
            "take_each": self._take_each,
            "give_each": self._give_each,
            "mark": counters.mark,
            "marked": self._marked,
            "unmark": counters.unmark,
            "marks": self._marks,
            "slot": self._slot,
            "free": self._free,
        }

    async def release(self) -> None:
        """Give back all that the worker held: it is dead."""
        for key, count in self._held.items():
            for _ in range(count):
                await self._counters.give(key)
        for (channel, destination), count in self._delivering.items():
            for _ in range(count):
                self._slots[channel].give(destination)
        self._held.clear()
        self._delivering.clear()

    async def _take(self, key: str, limit: int) -> bool:
        taken = await self._counters.take(key, limit)
        self._held[key] += taken
        return taken

    async def _give(self, key: str) -> None:
        if self._held[key] > 0:
            self._held[key] -= 1
            await self._counters.give(key)
        if not self._held[key]:
            del self._held[key]

    async def _take_each(self, wanted: Mapping[str, int]) -> str:
        over = await self._counters.take_each(wanted)
        if not over:
            self._held.update(wanted.keys())
        return over

    async def _give_each(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._give(key)

    async def _marked(self, key: str) -> tuple[Any, ...] | None:
        found = await self._counters.marked(key)
        return None if found is None else astuple(found)

    async def _marks(self, prefix: str) -> list[tuple[Any, ...]]:
        return [astuple(one) for one in await self._counters.marks(prefix)]

    async def _slot(self, channel: str, lane: str, destination: str) -> bool:
        taken = await self._slots[channel].take(lane, destination)
        self._delivering[channel, destination] += taken
        return taken

    def _free(self, channel: str, destination: str) -> None:
        if self._delivering[channel, destination] > 0:
            self._delivering[channel, destination] -= 1
            self._slots[channel].give(destination)
        if not self._delivering[channel, destination]:
            del self._delivering[channel, destination]
