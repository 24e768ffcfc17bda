"""Journal: takes events from any thread, writes them in batches, and says when they are safe.

`emit` only appends to a list. One thread stamps, writes and fdatasyncs whatever waits: at once when somebody
flushes (one fsync serves all who wait), else within INTERVAL. The sequence is given at the write, so it has
no gap even when memory had to drop something.

When the disk is full or broken, events wait in memory (`journal.full`), and every flush fails, so that the
queue keeps what the journal lacks. When that memory is full too, the lowest class goes first: other, then
security, then fate; `events.dropped` counts them after `journal.recovered`. On disk pruning is by whole
segments, oldest first, whatever their class: `keep` is the wish of the admin and silent, what `max_size`
takes before that is counted by `events.dropped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import JournalError
from gateway.events import EventsDropped, JournalFull, JournalRecovered
from gateway.journal.line import dump, stamp
from gateway.journal.segments import Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from gateway.events import Event, EventClass

#: Events that nobody waits for are on disk this many seconds later.
INTERVAL = 0.05
#: After a failed write the next is tried this many seconds later.
RETRY = 1.0
#: The most events that one write carries.
BATCH = 5000
_RANK: dict[EventClass, int] = {"other": 0, "security": 1, "fate": 2}

Record = dict[str, Any]
_Pending = tuple[int, float, "Event"]


class Output(Protocol):
    """Where events also go, once they are on disk."""

    name: str

    def write(self, records: Sequence[Record]) -> int:
        """Take records; must not block. Gives how many it had to drop before it had room again, else 0."""

    def close(self) -> None:
        """Write what waits, as far as the reader takes it."""


class Journal:
    """The events of one stream, which one process writes: `folder/stream/*.jsonl`.

    `keep` and `max_size` hold for all `streams` of the folder together.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        *,
        stream: str = "shard-0",
        streams: int = 1,
        now: Callable[[], float] = time.time,
        keep: float = 30 * 86400.0,
        max_size: int = 10 * 1024**3,
        outputs: Iterable[Output] = (),
        room: int = 100_000,
    ) -> None:
        self.folder = folder
        #: When the last event that `open` found was emitted, seconds since the epoch.
        self.ended = 0.0
        self._host = host
        self._stream = stream
        self._now = now
        self._outputs = tuple(outputs)
        self._room = room
        size = min(64 * 1024**2, max_size // 8 // streams)
        self._segments = Segments(folder / stream, size=size, keep=keep, max_size=max_size)
        self._sequence = 0
        self._wake = threading.Condition(threading.Lock())
        self._pending: deque[_Pending] = deque()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        #: Tickets number what was emitted; all up to `_safe` is on stable storage.
        self._ticket = self._safe = 0
        self._dropped: Counter[EventClass] = Counter()
        #: The lowest class that waits, when known.
        self._lowest: EventClass | None = None
        #: When a fate was last dropped; until it is well past nobody may believe in a flush.
        self._fate_lost = float("-inf")
        self._full_since = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Find where the stream ended, and start writing. Raises JournalError when another process does."""
        self._sequence, self.ended = self._segments.open(self._now())
        self._thread = threading.Thread(target=self._run, name=f"journal-{self._stream}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, as far as the disk takes it, and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread:
            self._thread.join()
        self._segments.close()
        for output in self._outputs:
            output.close()

    @property
    def full(self) -> bool:
        """Whether the journal cannot be written now."""
        return bool(self._full_since)

    def emit(self, event: Event) -> None:
        """Take an event, from any thread; it is safe after the next `flush`. Never raises, never waits."""
        with self._wake:
            self._ticket += 1
            if len(self._pending) >= self._room and not self._make_room(event):
                return
            self._pending.append((self._ticket, self._now(), event))
            if len(self._pending) in (1, BATCH):
                self._wake.notify()

    async def flush(self) -> None:
        """Return when all that was emitted so far is on stable storage.

        Raises JournalError when it cannot be put there now; it stays in memory and is written later, so what
        is emitted again then has the same id. Call it right after `emit`.
        """
        with self._wake:
            if self._thread is None or self._closing:
                raise JournalError("the journal is not open")
            if time.monotonic() - self._fate_lost < 2 * RETRY:
                raise JournalError("the journal is full, and so is the memory set aside for it")
            if self._ticket <= self._safe:
                return
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((self._ticket, waiter))
            self._wake.notify()
        await waiter

    def _make_room(self, event: Event) -> bool:
        """Drop what is of the lowest class, be it the event itself; True when there is room for it."""
        if self._lowest is None:  # looked for once: while there is no room nothing is added
            self._lowest = min((_RANK[waiting.CLASS], waiting.CLASS) for _, _, waiting in self._pending)[1]
        lowest = self._lowest
        if _RANK[event.CLASS] <= _RANK[lowest]:
            self._dropped[event.CLASS] += 1
            if event.CLASS == "fate":
                self._fate_lost = time.monotonic()
            return False
        kept = [one for one in self._pending if one[-1].CLASS != lowest]  # noqa: SIM300 - CLASS varies here
        self._dropped[lowest] += len(self._pending) - len(kept)
        self._pending, self._lowest = deque(kept), None
        return True

    def _run(self) -> None:
        while self._wait():
            batch = self._take()
            try:
                self._write(batch)
            except Exception as error:  # noqa: BLE001 - a thread that dies would leave every flush waiting
                self._failed(batch, error)
            else:
                self._written(batch)
        with self._wake:
            waiters, self._waiters = self._waiters, []
        _settle([waiter for _, waiter in waiters], "the journal is closed")

    def _wait(self) -> bool:
        """Wait until there is something to write and it is time to; False when all is done."""
        with self._wake:
            if self._full_since:
                self._wake.wait_for(lambda: self._closing, RETRY)
                return not self._closing
            self._wake.wait_for(lambda: self._pending or self._closing)
            self._wake.wait_for(
                lambda: self._waiters or self._closing or len(self._pending) >= BATCH, INTERVAL
            )
            return bool(self._pending)

    def _take(self) -> list[_Pending]:
        with self._wake:
            self._lowest = None
            return [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]

    def _write(self, batch: list[_Pending]) -> None:
        records = [
            stamp(event, when, self._host, self._stream, sequence)
            for sequence, (_, when, event) in enumerate(batch, self._sequence)
        ]
        lost = self._segments.append(b"".join(map(dump, records)), self._sequence, self._now())
        self._sequence += len(batch)
        if lost:
            self.emit(EventsDropped(reason="max_size", count=lost))
        self._show(records)

    def _show(self, records: Sequence[Record]) -> None:
        for output in self._outputs:
            dropped = output.write(records)
            if dropped:
                self.emit(EventsDropped(reason="output_slow", output=output.name, count=dropped))

    def _written(self, batch: list[_Pending]) -> None:
        with self._wake:
            self._safe = batch[-1][0] if self._pending else self._ticket
            ready = [waiter for ticket, waiter in self._waiters if ticket <= self._safe]
            self._waiters = [(ticket, waiter) for ticket, waiter in self._waiters if ticket > self._safe]
            dropped, self._dropped = self._dropped, Counter()
        if self._full_since:
            seconds, self._full_since = time.monotonic() - self._full_since, 0.0
            self.emit(JournalRecovered(seconds=round(seconds, 3)))
        if dropped:
            self.emit(
                EventsDropped(
                    reason="journal_full",
                    count=dropped.total(),
                    fate=dropped["fate"],
                    security=dropped["security"],
                    other=dropped["other"],
                )
            )
        _settle(ready, None)

    def _failed(self, batch: list[_Pending], error: Exception) -> None:
        """Put the batch back, tell the outputs at once that the disk cannot, and those who wait."""
        with self._wake:
            self._pending.extendleft(reversed(batch))
            self._lowest = None
            waiters, self._waiters = self._waiters, []
        if not self._full_since:
            self._full_since = time.monotonic()
            full = JournalFull(error=str(error))
            self.emit(full)
            self._show([stamp(full, self._now(), self._host, self._stream, 0)])
        _settle([waiter for _, waiter in waiters], f"the journal cannot be written: {error}")


def _settle(waiters: list[asyncio.Future[None]], problem: str | None) -> None:
    """Wake waiting coroutines, each in its own loop, from the writer's thread."""
    for loop in {waiter.get_loop() for waiter in waiters}:
        mine = [waiter for waiter in waiters if waiter.get_loop() is loop]
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, mine, problem)


def _resolve(waiters: list[asyncio.Future[None]], problem: str | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if problem is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(JournalError(problem))
