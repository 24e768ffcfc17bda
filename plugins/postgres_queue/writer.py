"""Group commit: all that waits to be stored goes into one transaction, so one fsync serves many messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import point
from gateway.queue import ClaimLost, QueueError

from . import statements
from .lease import now as uptime
from .links import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway import Entry
    from gateway.queue import Finish

    from .lease import Lease
    from .links import Connection, Link

#: The most calls that share one transaction.
LARGEST = 500
#: So many ends may wait, and so many seconds one transaction, before no more deliveries begin.
BACKLOG, PATIENCE = 8, 0.5
#: Seconds in which a lost answer to COMMIT is settled; then the caller hears that nobody knows.
SETTLED = 20.0
_DEAD = "the other nodes of the queue have taken this one for dead"
_BATCH = "UPDATE node SET batch = %s WHERE epoch = %s RETURNING epoch"
#: Waits for the transaction that was cut off, which has locked that row.
_LAST = "SELECT batch FROM node WHERE epoch = %s FOR UPDATE"


@dataclass(slots=True)
class Work:
    """What one call wants to have stored: new entries, entries received in parts, ends of attempts."""

    adds: Sequence[Entry] = ()
    flips: Sequence[str] = ()
    finishes: Sequence[Finish] = ()
    #: The epoch in which it was received, or claimed.
    epoch: int = 0
    done: asyncio.Future[list[str]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Writer:
    """Stores in order. When a transaction fails, each call is tried again alone: none takes others along."""

    def __init__(self, link: Link, lease: Lease, now: Callable[[], float]) -> None:
        self._link = link
        self._lease = lease
        self._now = now
        self._waiting: list[Work] = []
        self._some = asyncio.Event()
        self._batch = 0
        #: Ends that are not stored yet, and since when the transaction under way is.
        self._ends = 0
        self._began: float | None = None
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def behind(self) -> bool:
        """Whether ends of deliveries wait: more of them would only be repeated if this node died now."""
        waited = 0.0 if self._began is None else uptime() - self._began
        return self._ends >= BACKLOG or waited > PATIENCE

    async def store(self, work: Work) -> list[str]:
        """Return when it is on stable storage; gives the ids of the entries that are over.

        A caller that is cancelled does not stop the commit.
        """
        self._waiting.append(work)
        self._ends += len(work.finishes)
        self._some.set()
        return await asyncio.shield(work.done)

    async def stop(self) -> None:
        """Finish what waits."""
        self._closing = True
        self._some.set()
        await self._task

    async def _run(self) -> None:
        while not self._closing or self._waiting:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                self._began = uptime()
                await self._store(batch)
                self._began = None
                self._ends -= sum(len(work.finishes) for work in batch)
                self._lease.pulse()

    async def _store(self, batch: list[Work]) -> None:
        self._batch += 1
        try:
            gone = await self._settled(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear it
            if len(batch) == 1 or isinstance(error, ConnectionLost):
                _refuse(batch, error)
                return
            for one in batch:
                await self._store([one])
            return
        for work in batch:
            if not work.done.done():
                work.done.set_result([one.entry.id for one in work.finishes if one.entry.id in gone])

    async def _settled(self, batch: list[Work]) -> set[str]:
        gone: set[str] = set()

        async def write(connection: Connection) -> None:
            point("queue.begin")
            gone.update(await self._write(connection, batch))
            point("queue.commit")

        epoch = self._lease.epoch
        try:
            await self._link.run(write, pipelined=True)
            point("queue.committed")
        except ConnectionLost:
            if not await self._happened(epoch, batch):
                raise
        return gone

    async def _write(self, connection: Connection, batch: list[Work]) -> list[str]:
        me, now = self._lease.epoch, self._now()
        finishes = [one for work in batch for one in work.finishes]
        flips = [id_ for work in batch for id_ in work.flips]
        if any(work.epoch not in (0, me) for work in batch):
            raise ClaimLost("another node has taken over what this one had claimed")
        alive = await connection.execute(_BATCH, [self._batch, me])
        await statements.add(connection, [entry for work in batch for entry in work.adds], now)
        if await alive.fetchone() is None:
            raise (ClaimLost if finishes else QueueError)(_DEAD)
        if flips and not await statements.flip(connection, flips, me):
            raise QueueError(_DEAD)
        if not finishes:
            return []
        ids = {one.entry.id for one in finishes}
        left = await statements.lock(connection, ids, me)
        if left.keys() != ids:
            raise ClaimLost("another node has taken over what this one had claimed")
        return await statements.finish(connection, me, finishes, left, now)

    async def _happened(self, epoch: int, batch: list[Work]) -> bool:
        """Find out whether a transaction was committed whose answer was lost. Raises QueueError."""
        deadline = uptime() + SETTLED
        while True:
            try:
                return await self._link.run(lambda one: self._look(one, epoch, batch))
            except QueueError:
                if uptime() > deadline:
                    raise
                await asyncio.sleep(0.25)

    async def _look(self, connection: Connection, epoch: int, batch: list[Work]) -> bool:
        row = await (await connection.execute(_LAST, [epoch])).fetchone()
        if row is not None:
            return bool(row[0] == self._batch)
        # Taken for dead meanwhile: what is queued was committed.
        ids = [entry.id for work in batch for entry in work.adds]
        ids += [id_ for work in batch for id_ in work.flips]
        ids += [birth.id for work in batch for one in work.finishes for birth in one.births]
        return bool(ids) and await statements.known(connection, ids, 0.0) == set(ids)


def _refuse(batch: Sequence[Work], error: Exception) -> None:
    for work in batch:
        if not work.done.done():
            work.done.set_exception(error)
            # Whoever was cancelled meanwhile asks no more.
            work.done.exception()
