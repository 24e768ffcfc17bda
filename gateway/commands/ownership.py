"""Owns the queue for one call, where no gateway runs that could be asked."""

from __future__ import annotations

import asyncio
import os
import pwd
from typing import TYPE_CHECKING, Any

from gateway.commands.assembly import Assembly
from gateway.errors import ControlError, QueueError
from gateway.hookspecs import Stages
from gateway.journal import Journal
from gateway.operations import Operations

if TYPE_CHECKING:
    from gateway.worker import Configuration


def ask(configuration: Configuration, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Do one call of `Operations` under the store's own lock; a change is in the journal when this returns.

    Raises QueueError (a gateway starts at this very moment), ControlError, ConfigError.
    """
    state = configuration.settings.gateway.state
    if not state.is_dir():
        raise QueueError(f"no gateway has run here: {state} does not exist")
    actor = pwd.getpwuid(os.getuid()).pw_name
    return asyncio.run(_ask(Assembly.of(configuration), actor, name, arguments))


async def _ask(assembly: Assembly, actor: str, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    settings = assembly.configuration.settings
    queue = (await assembly.generation.chain.ask(Stages.open_queue)).value
    if queue is None:
        raise QueueError("no plugin opens the queue: `mailward check` says why")
    await queue.open()
    journal = Journal(
        settings.gateway.state / "journal",
        settings.gateway.hostname,
        keep=settings.journal.keep,
        max_size=settings.journal.max_size,
    )
    try:
        journal.open()
        call = Operations(queue, journal.emit).calls.get(name)
        if call is None:
            raise ControlError(
                f"{name.replace('.', ' ')} needs a running gateway: start one with `mailward run`"
            )
        rows = [row async for row in call(actor=actor, **arguments)]
        await journal.flush()
        return rows
    finally:
        journal.close()
        await queue.close()
