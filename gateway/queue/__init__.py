"""The door of the queue: the contract of stores, the schedule, and the dispatcher."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.envelope import RecipientState
    from gateway.errors import QueueDamaged, QueueError, QueueFull, QueueLocked
    from gateway.queue.bounce import bounce_envelope
    from gateway.queue.dispatcher import Dispatcher
    from gateway.queue.memory import MemoryQueue
    from gateway.queue.retry import next_attempt
    from gateway.queue.store import ENDED, MOVES, Filter, Finish, Queue, Rest, Stats, lane

__all__ = [
    "ENDED",
    "MOVES",
    "Dispatcher",
    "Filter",
    "Finish",
    "MemoryQueue",
    "Queue",
    "QueueDamaged",
    "QueueError",
    "QueueFull",
    "QueueLocked",
    "RecipientState",
    "Rest",
    "Stats",
    "bounce_envelope",
    "lane",
    "next_attempt",
]

_HOMES = {
    "Dispatcher": "gateway.queue.dispatcher",
    "MemoryQueue": "gateway.queue.memory",
    "QueueDamaged": "gateway.errors",
    "QueueError": "gateway.errors",
    "QueueFull": "gateway.errors",
    "QueueLocked": "gateway.errors",
    "RecipientState": "gateway.envelope",
    "bounce_envelope": "gateway.queue.bounce",
    "next_attempt": "gateway.queue.retry",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: whoever needs the contract loads no dispatcher."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "gateway.queue.store")), name)
