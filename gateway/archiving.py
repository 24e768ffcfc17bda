"""What the owner of a queue does with archives, for the control socket and for commands that own it.

A gateway of several workers asks one of them: its part of the store takes what is restored, and looks into
all parts for what is known. Reading journals and checking archives is the asker's work, beside the gateway.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.errors import QueueError
from gateway.message import FileBody, Message
from gateway.queue import Filter
from gateway.queue.archive.loading import Loaded, load, remember
from gateway.queue.archive.reader import Archive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from gateway.queue import Queue, Snapshot

    Rows = AsyncIterator[dict[str, Any]]


class Archiving:
    """The calls `archive.*` of one queue."""

    def __init__(
        self, queue: Queue, emit: Callable[[events.Event], None], wake: Callable[[], None] = lambda: None
    ) -> None:
        self._queue = queue
        self._emit = emit
        self._wake = wake
        self.calls: dict[str, Callable[..., Rows]] = {
            "archive.known": self._known,
            "archive.made": self._made,
            "archive.restore": self._restore,
            "archive.adopt": self._adopt,
        }

    async def _known(self, actor: str, ids: list[str]) -> Rows:
        """Say which messages are in the queue, or have ended in it."""
        del actor
        for id_ in await self._queue.known(ids):
            yield {"id": id_}

    async def _made(self, actor: str, **facts: Any) -> Rows:
        """Tell of a backup that a command has made."""
        self._emit(events.QueueBackup(actor=actor, **facts))
        yield {}

    async def _restore(
        self, actor: str, file: str, *, source: str, delivered: int = 0, hold: bool = False
    ) -> Rows:
        """Load an archive that was verified; `source`: what the person called it."""
        loaded = Loaded()
        with Archive.at(Path(file), source) as archive:
            found = archive.snapshots(self._queue.spool_folder)
            try:
                async for loaded in load(self._queue, found, self._emit, time.time() if hold else 0.0):
                    self._wake()
                    yield _row(loaded)
                await remember(self._queue, archive.finished())
            finally:
                self._emit(
                    events.QueueRestored(
                        actor=actor,
                        file=source,
                        messages=loaded.added,
                        known=loaded.known,
                        delivered=delivered,
                    )
                )

    async def _adopt(self, actor: str, folder: str) -> Rows:
        """Move what a dead gateway has left in a folder; broken off, another time moves the rest."""
        left = self._queue.estate(Path(folder))
        if _parts(left) == _parts(self._queue):
            raise QueueError(f"{folder} belongs to this gateway, which delivers what is in it itself")
        await left.open()
        loaded = Loaded()
        try:
            async for loaded in self._moved(left, Path(folder).name):
                self._wake()
                yield _row(loaded)
        finally:
            await left.close()
            self._emit(
                events.QueueAdopted(actor=actor, folder=folder, messages=loaded.added, known=loaded.known)
            )

    async def _moved(self, left: Queue, part: str) -> AsyncIterator[Loaded]:
        read: list[str] = []
        with ExitStack() as stack:
            views = {view.name: stack.enter_context(view) for view in left.views()}
            found = _copied(views[part].snapshots(), self._queue.spool_folder, read)
            async for loaded in load(self._queue, found, self._emit):
                # The copies are on stable storage: only now the originals may go.
                await left.delete(Filter(ids=read))
                read.clear()
                yield loaded


def _parts(queue: Queue) -> Path:
    """Give the folder that holds all parts of a store that keeps them in folders."""
    return queue.spool_folder.resolve().parent.parent


def _copied(found: Iterator[Snapshot], folder: Path, read: list[str]) -> Iterator[Snapshot]:
    """Give snapshots whose bodies lie where the queue takes them from, and note their ids."""
    for one in found:
        read.append(one.entry.id)
        yield replace(one, entry=replace(one.entry, message=_copy(one.entry.message, folder)))


def _copy(message: Message, folder: Path) -> Message:
    if not isinstance(message.body, FileBody):
        return message
    number, name = tempfile.mkstemp(prefix="body-", dir=folder)
    os.close(number)
    shutil.copyfile(message.body.path, name)
    return Message(message.header, replace(message.body, path=Path(name)))


def _row(loaded: Loaded) -> dict[str, Any]:
    return {"added": loaded.added, "known": loaded.known}
