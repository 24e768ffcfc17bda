"""sqlite_queue: the queue in one SQLite file. Replaces qmail-queue and qmail's queue directory.

All sessions that wait are committed in one transaction, so one fsync serves many messages; bodies over
256 KiB are files beside it. An ordinary SQLite file in `gateway.state`, locked while a gateway owns it.

Options: none of its own. Events: none; the stages around it tell what enters and leaves the queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import Plugin, Section, hookimpl

from .store import SqliteQueue

if TYPE_CHECKING:
    from gateway.queue import Queue


class Settings(Section):
    """It has no options of its own."""


class SqliteQueuePlugin(Plugin[Settings]):
    """The embedded store."""

    @hookimpl
    def open_queue(self) -> Queue:
        """Give this worker's shard; whoever asked opens it."""
        folder = self.site.state / "queue" / f"shard-{self.site.shard}"
        return SqliteQueue(folder, self.clock.time, self.site.lifetime, self.site.conf)
