"""Owns the queue for one call, where no gateway runs that could be asked."""

from __future__ import annotations

import asyncio
import os
import pwd
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from gateway.archiving import Archiving
from gateway.commands.assembly import Assembly
from gateway.errors import ControlError, QueueError
from gateway.hookspecs import Stages
from gateway.journal import Journal
from gateway.operations import Operations
from gateway.workers.calls import merged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.configuration import Configuration
    from gateway.queue import Queue

    Row = dict[str, Any]

#: Rows that are fetched at a time: a long queue is never whole in memory.
_SOME = 500


def ask(configuration: Configuration, name: str, arguments: dict[str, Any]) -> Iterator[Row]:
    """Do one call of `Operations` under the store's own lock; a change is in the journal at its end.

    Raises QueueError (a gateway starts at this very moment), ControlError, ConfigError.
    """
    state = configuration.settings.gateway.state
    if not state.is_dir():
        raise QueueError(f"no gateway has run here: {state} does not exist")
    actor = pwd.getpwuid(os.getuid()).pw_name
    with asyncio.Runner() as runner:
        rows = _ask(Assembly.of(configuration), actor, name, arguments)
        while some := runner.run(_next(rows)):
            yield from some


async def _next(rows: AsyncIterator[Row]) -> list[Row]:
    found: list[Row] = []
    async for row in rows:
        found.append(row)
        if len(found) == _SOME:
            break
    return found


async def _ask(assembly: Assembly, actor: str, name: str, arguments: dict[str, Any]) -> AsyncIterator[Row]:
    settings = assembly.configuration.settings
    async with AsyncExitStack() as stack:
        queues = [queue async for queue in _queues(assembly, stack)]
        journal = Journal(
            settings.gateway.state / "journal",
            settings.gateway.hostname,
            keep=settings.journal.keep,
            max_size=settings.journal.max_size,
        )
        stack.callback(journal.close)
        journal.open()
        if name.startswith("archive."):
            # One part takes what is restored; the locks of all are ours.
            calls = [Archiving(queues[0], journal.emit).calls.get(name)]
        else:
            calls = [Operations(queue, journal.emit, flush=journal.flush).calls.get(name) for queue in queues]
        parts = [call(actor=actor, **arguments) for call in calls if call]
        if not parts:
            raise ControlError(
                f"{name.replace('.', ' ')} needs a running gateway: start one with `mailward run`"
            )
        async for row in merged(name, parts, arguments.get("limit", 0)):
            yield row
        await journal.flush()


async def _queues(assembly: Assembly, stack: AsyncExitStack) -> AsyncIterator[Queue]:
    """Open the queue in all its parts: each worker that ever was has a shard."""
    first: Queue | None = (await assembly.generation.chain.ask(Stages.open_queue)).value
    if first is None:
        raise QueueError("no plugin opens the queue: `mailward check` says why")
    found = [first]
    if not first.shared:
        folder = assembly.configuration.settings.gateway.state / "queue"
        others = (one for one in sorted(folder.glob("shard-*")) if one.name != "shard-0")
        found += [first.estate(one) for one in others if (one / "queue.db").exists()]
    for queue in found:
        await queue.open()
        stack.push_async_callback(queue.close)
        yield queue
