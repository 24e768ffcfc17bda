"""The calls of a gateway with several workers: each is asked, and their answers are put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.errors import ControlError, GatewayError
from gateway.journal import newest
from gateway.loader import together
from gateway.workers.calls import merged, summed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from gateway.workers.pool import Pool
    from gateway.workers.process import Process
    from gateway.workers.seat import Seat

    Rows = AsyncIterator[dict[str, Any]]
    #: (who asks) -> what has changed.
    Reload = Callable[[str], Awaitable[dict[str, list[str]]]]

#: A call that needs all workers waits so many seconds for one that is started anew, and looks so often.
_WAIT, _LOOK = 20.0, 0.1
#: A worker that is frozen or starts is left out of the status after this many seconds.
_STATUS = 2.0


class Fanout:
    """Finds the calls of the control socket."""

    def __init__(self, pool: Pool, journal: Path, reload: Reload) -> None:
        self._pool = pool
        self._journal = journal
        self._reload = reload
        self._started = time.time()

    def find(self, name: str) -> Callable[..., Rows]:
        """Give the call of this name. Raises ControlError."""
        own = {"status": self._status, "reload": self._reloaded, "stages": self._stages}
        return own.get(name) or partial(self._ask, name)

    async def _ask(self, name: str, **arguments: Any) -> Rows:
        """Ask every worker, or one where all would say the same. Raises ControlError when one stays away."""
        each_has_own = name == "sessions.end" or (name.startswith("queue.") and not self._pool.shared)
        wanted = len(self._pool.seats) if each_has_own else 1
        end = time.monotonic() + _WAIT
        while len(serving := self._pool.serving()[:wanted]) < wanted:
            if time.monotonic() > end:
                raise ControlError("a worker is being started: ask again in a moment")
            await asyncio.sleep(_LOOK)
        parts = [process.link.rows("ask", name=name, arguments=arguments) for _, process in serving]
        merging = merged(name, parts, arguments.get("limit", 0))
        async with contextlib.aclosing(merging) as rows:  # type: ignore[type-var] # it is a generator
            async for row in rows:
                yield row

    async def _reloaded(self, actor: str) -> Rows:
        changes = await self._reload(actor)
        yield {"generation": self._pool.generation, **changes}

    async def _stages(self, actor: str) -> Rows:
        """Ask all workers, and add up what their chains have done."""
        asked = [
            process.link.rows("ask", name="stages", arguments={"actor": actor})
            for _, process in self._pool.serving()
        ]
        if not asked:
            raise ControlError("no worker is there: ask again in a moment")
        for row in together([[row async for row in rows] for rows in asked]):
            yield row

    async def _status(self, actor: str) -> Rows:
        del actor
        pool = self._pool
        configuration = pool.configuration
        workers = await asyncio.gather(*map(self._of, pool.seats))
        alive = [one for one in workers if one["serves"]]
        queue = [one.pop("queue") for one in alive]
        yield {
            "version": version("mailward"),
            "pid": os.getpid(),
            "hostname": configuration.settings.gateway.hostname,
            "seconds": round(time.time() - self._started, 1),
            "configuration": str(configuration.folder),
            "base": str(configuration.tree.base),
            "generation": pool.generation,
            "listeners": [
                f"{one.name} {one.protocol} {one.address}" for one in configuration.settings.listeners
            ],
            "sessions": sum(one["sessions"] for one in alive),
            "queue": summed(row for part in (queue[:1] if pool.shared else queue) for row in part),
            "suspended": list(
                {row["destination"]: row for one in alive for row in one.pop("suspended")}.values()
            ),
            "journal": {"folder": str(self._journal), "full": any(one["full"] for one in alive)},
            "last_error": await asyncio.to_thread(newest, self._journal, ("error", "critical")),
            "workers": workers,
        }

    async def _of(self, seat: Seat) -> dict[str, Any]:
        """Ask one worker how it is."""
        known: dict[str, Any] = {"worker": seat.name, "serves": False, "deaths": seat.deaths}
        process = seat.process
        if not seat.ready or process is None:
            return known
        with contextlib.suppress(GatewayError, TimeoutError):
            (row,) = await asyncio.wait_for(_all_rows(process, "status", ""), _STATUS)
            known |= {key: row[key] for key in ("pid", "seconds", "sessions", "queue", "suspended")}
            known |= {"serves": True, "full": row["journal"]["full"]}
        return known


async def _all_rows(process: Process, name: str, actor: str) -> list[dict[str, Any]]:
    return [row async for row in process.link.rows("ask", name=name, arguments={"actor": actor})]
