"""One of the workers as the pool knows it, whichever process it is at the moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.workers.watchdog import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.events import WorkerDied
    from gateway.listeners import Sockets
    from gateway.workers.process import Process


@dataclass(slots=True)
class Seat:
    """A worker's place. It outlives the process that is in it."""

    number: int
    #: Its sockets; they stay open while nobody is there, so that connections wait.
    sockets: Sockets
    process: Process | None = None
    #: It serves.
    ready: bool = False
    patience: float = PATIENCE
    #: Deaths in a row.
    deaths: int = 0
    #: stem -> file of the plugins that run in it.
    plugins: Mapping[str, str] = field(default_factory=dict)
    #: Why it was killed, when it was.
    killed: WorkerDied | None = None

    @property
    def name(self) -> str:
        """Its stream of events, and its part of the queue."""
        return f"shard-{self.number}"
