"""The one thread that writes: it takes all that waits and commits it in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from gateway import point
from gateway.queue import QueueDamaged, QueueError, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from .shard import Shard

R = TypeVar("R")
_Work = tuple["Callable[[Shard], Any]", "asyncio.Future[Any]"]
_Result = tuple["asyncio.Future[Any]", Any, BaseException | None]

#: The most calls that share one transaction.
LARGEST = 1000


class Writer:
    """Runs calls on a shard, in order; a call's result is given when its transaction is on stable storage.

    Calls must not change anything but the shard: when a transaction fails, each is tried again alone, so
    that one bad call does not take others with it.
    """

    def __init__(self, shard: Shard, loop: asyncio.AbstractEventLoop) -> None:
        self._shard = shard
        self._loop = loop
        self._refusal: Exception | None = None
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sqlite_queue", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Shard], R]) -> asyncio.Future[R]:
        """Hand a call to the thread."""
        future: asyncio.Future[R] = self._loop.create_future()
        if self._refusal:
            future.set_exception(self._refusal)
        else:
            self._waiting.put((call, future))
        return future

    def refuse(self, error: Exception) -> None:
        """Write nothing any more: each call from now on gets this error."""
        self._refusal = error

    async def stop(self) -> None:
        """Finish what waits, and end the thread."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        running = True
        while running:
            batch = [self._waiting.get()]
            while len(batch) < LARGEST and not self._waiting.empty():
                batch.append(self._waiting.get())
            running = None not in batch
            work = [one for one in batch if one is not None]
            if work:
                self._tell(self._commit(work))

    def _commit(self, work: list[_Work]) -> list[_Result]:
        do = self._shard.connection.execute
        try:
            do("BEGIN IMMEDIATE")
            point("queue.begin")
            results: list[_Result] = [(future, call(self._shard), None) for call, future in work]
            point("queue.commit")
            do("COMMIT")
            point("queue.committed")
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear it
            self._roll_back()
            if len(work) == 1:
                return [(work[0][1], None, translated(error))]
            return [result for one in work for result in self._commit([one])]
        return results

    def _roll_back(self) -> None:
        # Where even this fails, each later call fails too, and says so: the thread must not end.
        with contextlib.suppress(apsw.Error):
            if self._shard.connection.in_transaction:
                self._shard.connection.execute("ROLLBACK")

    def _tell(self, results: list[_Result]) -> None:
        """Wake all callers by one call into the loop."""
        try:
            self._loop.call_soon_threadsafe(_settle, results)
        except RuntimeError:
            # The loop is closed: nobody waits any more, and what was committed stays so.
            return


def _settle(results: list[_Result]) -> None:
    for future, value, error in results:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def translated(error: Exception) -> Exception:
    """Give the queue's own exception for one of SQLite's or of the file system's."""
    if isinstance(error, apsw.FullError):
        return QueueFull("no room is left for the queue")
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return (
            QueueFull("no room is left for the queue") if full else QueueError(f"the queue's disk: {error}")
        )
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)) or (
        isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_READ
    ):
        return QueueDamaged(f"the queue's file is damaged: {error}")
    if isinstance(error, apsw.Error):
        return QueueError(f"the queue's file: {error}")
    if isinstance(error, StopIteration):
        # A row that is not there; a future refuses this exception, and all who share the batch would hang.
        return QueueError("the queue does not hold that message any more")
    return error
