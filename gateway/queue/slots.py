"""How many deliveries run at a time, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.settings import Queue as Settings


class Slots:
    """The slots of one channel. Lanes that wait have a turn each, so that a long one delays no other.

    `limit` bounds all deliveries; `per_destination` those of one destination, where it has a name.
    """

    def __init__(self, limit: Callable[[], int], per_destination: Callable[[], int]) -> None:
        self._limit = limit
        self._per_destination = per_destination
        self._running: Counter[str] = Counter()
        self._lanes: dict[str, deque[tuple[str, asyncio.Future[bool]]]] = {}
        self._total = 0
        self._closed = False

    async def take(self, lane: str, destination: str) -> bool:
        """Wait for a slot; False when the slots were closed meanwhile."""
        if self._closed:
            return False
        if not self._lanes and self._total < self._limit() and self._free(destination):
            self._enter(destination)
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._lanes.setdefault(lane, deque()).append((destination, future))
        self._grant()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.result():  # granted in this very turn
                self.give(destination)
            raise

    def give(self, destination: str) -> None:
        """Give a slot back."""
        self._total -= 1
        self._running[destination] -= 1
        if not self._running[destination]:
            del self._running[destination]
        self._grant()

    def close(self) -> None:
        """Send all that wait away."""
        self._closed = True
        for waiting in self._lanes.values():
            for _, future in waiting:
                if not future.done():
                    future.set_result(False)
        self._lanes.clear()

    def _free(self, destination: str) -> bool:
        return not destination or self._running[destination] < self._per_destination()

    def _grant(self) -> None:
        """Go round the lanes once or more, while a turn is of use."""
        granted = True
        while granted:
            granted = False
            for lane in list(self._lanes):
                if self._total >= self._limit():
                    return
                waiting = self._lanes.pop(lane)
                destination, future = waiting[0]
                if future.cancelled():
                    waiting.popleft()
                    granted = True
                elif self._free(destination):
                    waiting.popleft()
                    self._enter(destination)
                    future.set_result(True)
                    granted = True
                if waiting:
                    self._lanes[lane] = waiting

    def _enter(self, destination: str) -> None:
        self._running[destination] += 1
        self._total += 1


def slots_of(settings: Callable[[], Settings]) -> dict[str, Slots]:
    """Make the slots of both channels, as `queue.concurrency` bounds them at any moment."""
    return {
        "local": Slots(lambda: settings().concurrency.local, lambda: settings().concurrency.per_destination),
        "remote": Slots(
            lambda: settings().concurrency.remote, lambda: settings().concurrency.per_destination
        ),
    }
