"""What one worker answers: its part of the status, its chain, and the operations on its queues."""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from contextlib import AsyncExitStack, aclosing
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.archiving import Archiving
from gateway.errors import ControlError
from gateway.events import DestinationResumed
from gateway.journal import newest
from gateway.loader import describe
from gateway.operations import Operations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from gateway.loader import Generation
    from gateway.worker import Worker

    Rows = AsyncIterator[dict[str, Any]]


class Calls:
    """The calls of one worker; alone, they are those of its gateway."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def find(self, name: str) -> Callable[..., Rows]:
        """Give the call of this name. Raises ControlError."""
        own: dict[str, Callable[..., Rows]] = {
            "status": self._status,
            "stages": self._stages,
            "reload": self._reload,
            "marks": self._marks,
            "unmark": self._unmark,
            "sessions.end": self._end_sessions,
        }
        if name in own:
            return own[name]
        worker = self._worker
        archiving = Archiving(worker.queue, worker.generation.chain.emit, worker.dispatchers[0].wake)
        if name in archiving.calls:
            return archiving.calls[name]
        # Built per request: a reload changes the chain that the events go through.
        emit = worker.generation.chain.emit
        several = [
            Operations(queue, emit, one.wake, one.bounce, one.settle, worker.journal.flush).calls.get(name)
            for queue, one in zip(worker.queues, worker.dispatchers, strict=True)
        ]
        found = [call for call in several if call]
        if not found:
            raise ControlError(f"not understood: there is no call {name}")
        return partial(_of_all, name, found)

    async def _status(self, actor: str) -> Rows:
        del actor
        worker = self._worker
        folder = worker.journal.folder
        yield {
            "version": version("mailward"),
            "pid": os.getpid(),
            "hostname": worker.settings.gateway.hostname,
            "seconds": round(time.time() - worker.started, 1),
            "configuration": str(worker.configuration.folder),
            "base": str(worker.configuration.tree.base),
            "generation": worker.generation.number,
            "listeners": [f"{one.name} {one.protocol} {one.address}" for one in worker.settings.listeners],
            "sessions": worker.reception.sessions(),
            "workers": [],
            "queue": [row async for row in self.find("queue.stats")(actor="")],
            "suspended": [row async for row in self.find("queue.suspended")(actor="")],
            "journal": {"folder": str(folder), "full": worker.journal.full},
            "last_error": await asyncio.to_thread(newest, folder, ("error", "critical")),
        }

    async def _reload(self, actor: str) -> Rows:
        before = self._worker.generation
        await self._worker.reload(actor)
        yield {"generation": self._worker.generation.number, **changes(before, self._worker.generation)}

    async def _stages(self, actor: str) -> Rows:
        del actor
        for row in describe(self._worker.generation):
            yield row

    async def _end_sessions(self, user: str, actor: str) -> Rows:
        """End the sessions of a login; each is an event, `session.closed` with the reason `locked`."""
        del actor
        yield {"ended": self._worker.end_sessions(user)}

    async def _marks(self, prefix: str, actor: str) -> Rows:
        del actor
        for mark in await self._worker.services.counters.marks(prefix):
            yield {"key": mark.key, "until": mark.until, "note": mark.note}

    async def _unmark(self, prefix: str, actor: str) -> Rows:
        """Take marks away before their time; their key is a reason, a blank and whom it keeps waiting."""
        counters, emit = self._worker.services.counters, self._worker.generation.chain.emit
        for mark in await counters.marks(prefix):
            await counters.unmark(mark.key)
            reason, _, destination = mark.key.partition(" ")
            emit(DestinationResumed(destination=destination, reason=reason, actor=actor))
            yield {"key": mark.key, "until": mark.until, "note": mark.note}


def changes(before: Generation, after: Generation) -> dict[str, list[str]]:
    """Say which plugins a reload has added, removed, or made anew since their file or settings changed."""
    old, new = before.plugins, after.plugins
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(stem for stem in new.keys() & old.keys() if not new[stem].kept),
    }


def _of_all(name: str, several: Sequence[Callable[..., Rows]], **arguments: Any) -> Rows:
    """Ask all queues of one worker, and give their rows as those of one."""
    parts = [call(**arguments) for call in several]
    return merged(name, parts, arguments.get("limit", 0))


async def merged(name: str, parts: Sequence[Rows], limit: int = 0) -> Rows:
    """Give the rows of one call that several parts of a queue were asked: as if it were one queue.

    Pages of `queue.list` stay in the order of ids, and within their limit; counts are summed up.
    """
    if len(parts) == 1 or name == "queue.suspended":  # all parts know all of these
        whole = parts[0]
    elif name == "queue.list":
        whole = _in_order(parts)
    elif name == "queue.stats":
        whole = _summed(parts)
    else:
        whole = _one_after_the_other(parts)
    given = 0
    async with AsyncExitStack() as stack:
        for part in (*parts, whole):
            await stack.enter_async_context(aclosing(part))  # type: ignore[type-var] # all are generators
        async for row in whole:
            yield row
            given += 1
            if given == limit:
                return


async def _begun(parts: Sequence[Rows]) -> list[tuple[dict[str, Any], Rows]]:
    """Begin all parts, and give those that have a row: whoever leaves then, each has done its work."""
    firsts = await asyncio.gather(*(anext(part, None) for part in parts), return_exceptions=True)
    for first in firsts:
        if isinstance(first, BaseException):
            raise first
    return [(first, part) for first, part in zip(firsts, parts, strict=True) if isinstance(first, dict)]


async def _in_order(parts: Sequence[Rows]) -> Rows:
    waiting = [(row["id"], number, row, part) for number, (row, part) in enumerate(await _begun(parts))]
    heapq.heapify(waiting)
    while waiting:
        _, number, row, part = waiting[0]
        yield row
        following = await anext(part, None)
        if following is None:
            heapq.heappop(waiting)
        else:
            heapq.heapreplace(waiting, (following["id"], number, following, part))


async def _one_after_the_other(parts: Sequence[Rows]) -> Rows:
    for first, part in await _begun(parts):
        yield first
        async for row in part:
            yield row


async def _summed(parts: Sequence[Rows]) -> Rows:
    for row in summed([row async for row in _one_after_the_other(parts)]):
        yield row


def summed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up the counts of several parts of a queue."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        known = sums.setdefault((row["domain"], row["state"]), row)
        if known is not row:
            known["recipients"] += row["recipients"]
            known["oldest"] = min(known["oldest"], row["oldest"])
            if "ages" in row:
                known["ages"] = [a + b for a, b in zip(known["ages"], row["ages"], strict=True)]
    return [sums[key] for key in sorted(sums)]
