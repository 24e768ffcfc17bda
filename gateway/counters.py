"""Expiring keyed counters, slots and marks: the state of all limits, per gateway and not per worker.

Every call is awaitable, because the state lives with the supervisor behind this same interface
(`workers/sharing.py`). A limit is soft state: it starts from zero with the gateway, and the oldest counters
go when there are more keys than fit.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.services import Clock

#: Counters kept at most, and marks; about 20 MB. Slots need no bound: who holds one holds a session.
KEYS = 100_000


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that holds for a while: a host that is down, a client that is sent away."""

    key: str
    #: When it ends by itself, seconds since the epoch.
    until: float
    note: str = ""


@dataclass(slots=True)
class _Window:
    """Hits of the window that runs, and of the one before it."""

    started: float
    length: float
    count: int = 0
    former: int = 0

    def roll(self, now: float) -> None:
        """Move on to the window that `now` is in."""
        passed = int((now - self.started) // self.length)
        if passed:
            self.former = self.count if passed == 1 else 0
            self.count = 0
            self.started += passed * self.length


class Counters:
    """Counters that forget, slots that are given back, and marks that end."""

    def __init__(self, clock: Clock, keys: int = KEYS) -> None:
        self._clock = clock
        self._keys = keys
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._slots: dict[str, int] = {}
        self._marks: OrderedDict[str, Mark] = OrderedDict()

    async def hit(self, key: str, window: float, amount: int = 1) -> int:
        """Count, and give the hits of the last `window` seconds, this one with them.

        Two numbers a key are kept, so hits of the window before count for the share of it that the last
        `window` seconds still cover. `amount` 0 only asks.
        """
        now = self._clock.monotonic()
        found = self._windows.get(key)
        if found is None or found.length != window:
            found = self._windows[key] = _Window(now, window)
        found.roll(now)
        found.count += amount
        self._windows.move_to_end(key)
        while len(self._windows) > self._keys:
            self._windows.popitem(last=False)
        covered = 1 - (now - found.started) / window
        return found.count + round(found.former * covered)

    async def take(self, key: str, limit: int) -> bool:
        """Take one of `limit` slots; False when all are taken. Give each back exactly once."""
        taken = self._slots.get(key, 0)
        if taken >= limit:
            return False
        self._slots[key] = taken + 1
        return True

    async def give(self, key: str) -> None:
        """Give a slot back."""
        left = self._slots.get(key, 0) - 1
        if left > 0:
            self._slots[key] = left
        else:
            self._slots.pop(key, None)

    async def take_each(self, wanted: Mapping[str, int]) -> str:
        """Take a slot of each key with its limit, or none of them; gives the key that has no more, or ""."""
        taken: list[str] = []
        for key, limit in wanted.items():
            if not await self.take(key, limit):
                await self.give_each(taken)
                return key
            taken.append(key)
        return ""

    async def give_each(self, keys: Sequence[str]) -> None:
        """Give a slot of each key back."""
        for key in keys:
            await self.give(key)

    async def mark(self, key: str, seconds: float, note: str = "") -> None:
        """Set a mark for so many seconds from now, in place of one of the same key."""
        self._marks.pop(key, None)
        self._marks[key] = Mark(key, self._clock.time() + seconds, note)
        while len(self._marks) > self._keys:
            self._marks.popitem(last=False)

    async def marked(self, key: str) -> Mark | None:
        """Give the mark of a key while it lasts."""
        found = self._marks.get(key)
        if found is not None and found.until <= self._clock.time():
            del self._marks[key]
            return None
        return found

    async def unmark(self, key: str) -> None:
        """Take a mark away before its time."""
        self._marks.pop(key, None)

    async def marks(self, prefix: str = "") -> list[Mark]:
        """Give the marks that last, sorted, whose key begins so."""
        now = self._clock.time()
        self._marks = OrderedDict((key, one) for key, one in self._marks.items() if one.until > now)
        return sorted((one for one in self._marks.values() if one.key.startswith(prefix)), key=_key)


class StandIn(Counters):
    """Counters that plugins get before the queue is open, which may know better ones: these are `target`."""

    def __init__(self, target: Counters) -> None:
        self.target = target

    async def hit(self, key: str, window: float, amount: int = 1) -> int:
        """Count."""
        return await self.target.hit(key, window, amount)

    async def take(self, key: str, limit: int) -> bool:
        """Take a slot."""
        return await self.target.take(key, limit)

    async def give(self, key: str) -> None:
        """Give a slot back."""
        await self.target.give(key)

    async def take_each(self, wanted: Mapping[str, int]) -> str:
        """Take a slot of each key, or none."""
        return await self.target.take_each(wanted)

    async def give_each(self, keys: Sequence[str]) -> None:
        """Give a slot of each key back."""
        await self.target.give_each(keys)

    async def mark(self, key: str, seconds: float, note: str = "") -> None:
        """Set a mark."""
        await self.target.mark(key, seconds, note)

    async def marked(self, key: str) -> Mark | None:
        """Give a mark."""
        return await self.target.marked(key)

    async def unmark(self, key: str) -> None:
        """Take a mark away."""
        await self.target.unmark(key)

    async def marks(self, prefix: str = "") -> list[Mark]:
        """Give the marks of a prefix."""
        return await self.target.marks(prefix)


def _key(mark: Mark) -> str:
    return mark.key
