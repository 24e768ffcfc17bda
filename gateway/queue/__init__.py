"""The door of the queue: the contract of stores, the schedule, and the dispatcher."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.envelope import RecipientState
    from gateway.errors import ClaimLost, QueueDamaged, QueueError, QueueFull, QueueLocked
    from gateway.queue.bounce import bounce_envelope
    from gateway.queue.dispatcher import Dispatcher
    from gateway.queue.filter import Filter, is_client, regex
    from gateway.queue.memory import MemoryQueue
    from gateway.queue.retry import next_attempt
    from gateway.queue.store import AGES, ENDED, MOVES, Finish, Queue, Rest, Snapshot, Stats, View, lane
    from gateway.queue.suspension import Suspension

__all__ = [
    "AGES",
    "ENDED",
    "MOVES",
    "ClaimLost",
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
    "Snapshot",
    "Stats",
    "Suspension",
    "View",
    "bounce_envelope",
    "is_client",
    "lane",
    "next_attempt",
    "regex",
]

_HOMES = {
    "ClaimLost": "gateway.errors",
    "Dispatcher": "gateway.queue.dispatcher",
    "Filter": "gateway.queue.filter",
    "MemoryQueue": "gateway.queue.memory",
    "QueueDamaged": "gateway.errors",
    "QueueError": "gateway.errors",
    "QueueFull": "gateway.errors",
    "QueueLocked": "gateway.errors",
    "RecipientState": "gateway.envelope",
    "Suspension": "gateway.queue.suspension",
    "bounce_envelope": "gateway.queue.bounce",
    "is_client": "gateway.queue.filter",
    "next_attempt": "gateway.queue.retry",
    "regex": "gateway.queue.filter",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: whoever needs the contract loads no dispatcher."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "gateway.queue.store")), name)
