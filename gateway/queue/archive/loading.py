"""Puts archived messages into a queue: each once, and none that was here before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from gateway.message import FileBody
from gateway.queue.birth import told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from gateway.envelope import Entry, EntryRecipient
    from gateway.events import Event
    from gateway.queue.store import Queue, Snapshot

#: Bounds of what is read before it is stored.
MESSAGES, BYTES = 200, 16 * 1024 * 1024
#: Ids that are stored at a time.
IDS = 5000


@dataclass(slots=True)
class Loaded:
    """How far it has come."""

    added: int = 0
    #: Messages that the queue holds, or has finished within `queue.lifetime`.
    known: int = 0


async def load(
    queue: Queue, snapshots: Iterator[Snapshot], emit: Callable[[Event], None], held_since: float = 0.0
) -> AsyncIterator[Loaded]:
    """Store the messages and tell of each; gives how far it has come, page by page.

    `held_since`: what would be tried is held instead. Raises QueueError; what was added before stays, and
    another time adds the rest. Bodies that are files in the queue's spool folder are taken over.
    """
    loaded = Loaded()
    while page := await asyncio.to_thread(_page, snapshots):
        try:
            known = await queue.known(page.keys())
            new = [one for id_, one in page.items() if id_ not in known]
            if held_since:
                new = [_held(one, held_since) for one in new]
            results = await asyncio.gather(*map(queue.restore, new), return_exceptions=True)
        finally:
            # Those that were stored have left their file to the store.
            await asyncio.to_thread(_drop, queue, page.values())
        added = [one.entry for one, stored in zip(new, results, strict=True) if stored is True]
        for entry in added:
            for event in told(entry, recovered=True):
                emit(event)
        loaded.added += len(added)
        loaded.known += len(page) - len(added) - sum(isinstance(one, BaseException) for one in results)
        for one in results:
            if isinstance(one, BaseException):
                raise one
        yield loaded


async def remember(queue: Queue, ended: Iterator[tuple[str, float]]) -> None:
    """Let the queue know what has ended elsewhere. Raises QueueError."""
    while page := await asyncio.to_thread(lambda: dict(islice(ended, IDS))):
        await queue.remember(page)


def _page(snapshots: Iterator[Snapshot]) -> dict[str, Snapshot]:
    found: dict[str, Snapshot] = {}
    size = 0
    for one in snapshots:
        found.setdefault(one.entry.id, one)
        size += one.entry.message.size
        if len(found) >= MESSAGES or size >= BYTES:
            break
    return found


def _held(snapshot: Snapshot, since: float) -> Snapshot:
    def hold(one: EntryRecipient) -> EntryRecipient:
        if one.state != "queued":
            return one
        return replace(one, state="held", due=since, recipient=replace(one.recipient, held="restored"))

    held: Entry = replace(snapshot.entry, recipients=[hold(one) for one in snapshot.entry.recipients])
    return replace(snapshot, entry=held)


def _drop(queue: Queue, snapshots: Iterable[Snapshot]) -> None:
    for one in snapshots:
        body = one.entry.message.body
        if isinstance(body, FileBody) and body.path.parent == queue.spool_folder:
            body.path.unlink(missing_ok=True)
