"""Who is alive: each worker has an epoch that it keeps alive, and all take over from those that fall silent.

The database's clock alone says when a lease has ended. What a worker measures itself only makes it stop
sooner: it counts from before it asked, and keeps a third of the lease in reserve.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from gateway import point
from gateway.queue import QueueError

from .statements import GIVE_BACK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .links import Connection, Link

CHANNEL = "mailward_queue"
_LEAVE = "DELETE FROM node WHERE name = %s RETURNING epoch"
_JOIN = "INSERT INTO node (name, lease) VALUES (%s, make_interval(secs => %s)) RETURNING epoch"
_RENEW = "UPDATE node SET seen = clock_timestamp() WHERE epoch = %s RETURNING epoch"
#: A stopped node may sit in the midst of a transaction, whose locks no time-out of the server's ends.
_HANG_UP = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN node ON application_name = left(name, 63)
WHERE seen + lease < clock_timestamp() AND epoch <> %s
"""
_FENCE = """
DELETE FROM node WHERE epoch IN (
  SELECT epoch FROM node WHERE seen + lease < clock_timestamp() AND epoch <> %s FOR UPDATE SKIP LOCKED
) RETURNING epoch
"""
_GIVE_BACK = (
    """
    WITH gone AS (DELETE FROM entry WHERE state = 'receiving' AND owner = ANY(%s) RETURNING id),
    recipients AS (DELETE FROM recipient USING gone WHERE entry = gone.id)
    DELETE FROM body USING gone WHERE entry = gone.id
    """,
    GIVE_BACK.format(
        "FROM entry "
        "WHERE entry.id = recipient.entry AND entry.owner = ANY(%s) AND recipient.state = 'attempting'"
    ),
    "UPDATE entry SET owner = NULL, claimed = 0 WHERE owner = ANY(%s)",
)


def now() -> float:
    """Seconds by a clock that also runs while the process, or the machine, is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The membership of one worker. `wake` is called when others may have stored something."""

    def __init__(self, link: Link, name: str, seconds: float, wake: Callable[[], None]) -> None:
        self.epoch = 0
        self._link = link
        self._name = name
        self._seconds = seconds
        self._wake = wake
        self._sure_until = 0.0
        #: Since when every renewal came in time.
        self._steady = math.inf
        self._news = asyncio.Event()

    @property
    def sure(self) -> bool:
        """Nobody else can have taken over from this epoch by now."""
        return now() < self._sure_until

    async def join(self) -> None:
        """Get a new epoch; what the former one of this worker held is given back."""
        began = now()

        async def join(connection: Connection) -> int:
            await give_back(connection, await _epochs(connection, _LEAVE, [self._name]))
            (epoch,) = await _epochs(connection, _JOIN, [self._name, self._seconds])
            return epoch

        self.epoch = await self._link.run(join)
        self._sure_until = began + self._seconds * 2 / 3
        self.pulse()

    async def leave(self) -> None:
        """Give all back, and be no node any more."""
        self._sure_until = 0.0

        async def leave(connection: Connection) -> None:
            await give_back(connection, await _epochs(connection, _LEAVE, [self._name]))

        await self._link.run(leave)

    async def news(self) -> None:
        """Wait until something is known that was not."""
        await self._news.wait()

    async def turn(self) -> bool:
        """Renew the lease, take over from the dead; False when this worker was taken for dead itself."""
        began = now()
        try:
            alive = await self._link.run(lambda one: _epochs(one, _RENEW, [self.epoch]))
        except QueueError:
            self._steady = math.inf
            raise
        if not alive:
            self._sure_until, self._steady = 0.0, math.inf
            return False
        self._sure_until = began + self._seconds * 2 / 3
        self._steady = min(self._steady, began)
        self.pulse()
        # After an outage of the database all leases look old: the living get the time to renew theirs.
        if began - self._steady >= self._seconds:
            await self._link.run(lambda one: _take_over(one, self.epoch))
        return True

    async def listen(self) -> None:
        """Wait for a sixth of the lease, and wake who should look at once when another node says so."""
        async with self._link.connection() as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            async for notice in connection.notifies(timeout=self._seconds / 6):
                if notice.payload != str(self.epoch):
                    self._wake()

    def pulse(self) -> None:
        """Something is known that was not."""
        self._news.set()
        self._news = asyncio.Event()


async def _epochs(connection: Connection, query: str, values: Sequence[object]) -> list[int]:
    cursor = await connection.execute(query.encode(), values)
    return [epoch for (epoch,) in await cursor.fetchall()]


async def _take_over(connection: Connection, me: int) -> None:
    await connection.execute(_HANG_UP, [me])
    await give_back(connection, await _epochs(connection, _FENCE, [me]))


async def give_back(connection: Connection, epochs: Sequence[int]) -> None:
    """Forget what these epochs were receiving, and let others have what they had claimed."""
    for statement in _GIVE_BACK if epochs else ():
        await connection.execute(statement.encode(), [list(epochs)])
        point("queue.sweep")
