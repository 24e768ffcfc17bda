"""One round trip to the database for all that is asked in one turn of the loop; none while it is away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from gateway.queue import QueueError

from .lease import now as uptime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .links import Connection, Link
    from .rows import Row

    Statement = tuple[str, Sequence[object]]

#: The most calls of one round trip, the seconds that a caller waits, and those that nobody asks after that.
LARGEST, PATIENCE, AWAY = 200, 1.0, 5.0
#: Loses at most the last moment when the database dies: a limit needs no more.
_SOFT = "SET LOCAL synchronous_commit TO off"


class Away(Exception):
    """The database does not answer."""


@dataclass(slots=True)
class _Call:
    """Statements of one call; `done` has the rows of the last."""

    #: All nodes lock in this order.
    order: tuple[str, bytes]
    statements: Sequence[Statement]
    done: asyncio.Future[list[Row]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Asking:
    """Gathers calls while a round trip is under way."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._link: Link | None = None
        self._asked: list[_Call] = []
        #: What nobody waits for, and must be said when it can be.
        self._owed: list[_Call] = []
        self._task: asyncio.Task[None] | None = None
        #: Nobody asks before this time; 0: the database answers.
        self._away = 0.0

    @property
    def begun(self) -> bool:
        """Whether there is somebody to ask."""
        return self._link is not None

    def begin(self, link: Link) -> None:
        """Ask by this link from now on."""
        self._link, self._away = link, 0.0

    async def end(self) -> None:
        """Ask no more."""
        self._link = None
        if self._task:
            await asyncio.wait([self._task])

    async def ask(
        self,
        order: tuple[str, bytes],
        statements: Sequence[Statement],
        late: Callable[[], None] | None = None,
    ) -> list[Row]:
        """Give the rows of the last statement; `late` is called when it gives some to nobody. Raises Away."""
        if self._link is None or uptime() < self._away:
            raise Away
        call = _Call(order, statements)
        self._asked.append(call)
        self._start(self._link)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(call.done)
        except (QueueError, TimeoutError) as error:
            self._lost()
            raise Away from error
        finally:
            if late and not call.done.done():
                call.done.add_done_callback(lambda done: _had(done) and late())

    def _lost(self) -> None:
        if not self._away:
            self._tell("the queue's database does not answer: limits count on this node alone")
        self._away = uptime() + AWAY

    def owe(self, order: tuple[str, bytes], statements: Sequence[Statement]) -> None:
        """Say this without a haste; while the database is away, later."""
        self._owed.append(_Call(order, statements))
        if self._link and uptime() >= self._away:
            self._start(self._link)

    def _start(self, link: Link) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(link))

    async def _run(self, link: Link) -> None:
        while self._asked or (self._owed and uptime() >= self._away):
            # In front, so that who gives a slot back can take it again.
            batch = self._owed + self._asked[:LARGEST]
            owed, self._owed, self._asked = self._owed, [], self._asked[LARGEST:]
            batch.sort(key=lambda call: call.order)
            try:
                answers = await link.run(partial(_all, batch), pipelined=True)
            except Exception as error:  # noqa: BLE001 - whatever it is, each caller counts for itself
                self._owed += [_Call(one.order, one.statements) for one in owed]
                self._lost()
                for call in batch:
                    call.done.set_exception(
                        error if isinstance(error, QueueError) else QueueError(str(error))
                    )
                    call.done.exception()
                continue
            for call, answer in zip(batch, answers, strict=True):
                call.done.set_result(answer)
            if self._away:
                self._away = 0.0
                self._tell("the queue's database answers: limits count on all nodes again")


async def _all(batch: Sequence[_Call], connection: Connection) -> list[list[Row]]:
    """Say all, then hear all."""
    last = []
    async with connection.pipeline():
        await connection.execute(_SOFT)
        for call in batch:
            for query, values in call.statements:
                cursor = await connection.execute(query.encode(), values)
            last.append(cursor)
    return [list(await one.fetchall()) if one.description else [] for one in last]


def _had(done: asyncio.Future[list[Row]]) -> bool:
    """Whether a call that nobody waits for has got something."""
    return not done.cancelled() and done.exception() is None and bool(done.result())
