"""The door of the queue: the contract of stores, the schedule, and the dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lazy

if TYPE_CHECKING:
    from gateway.envelope import RecipientState as RecipientState
    from gateway.errors import ClaimLost as ClaimLost
    from gateway.errors import QueueDamaged as QueueDamaged
    from gateway.errors import QueueError as QueueError
    from gateway.errors import QueueFull as QueueFull
    from gateway.errors import QueueLocked as QueueLocked
    from gateway.queue.bounce import bounce_envelope as bounce_envelope
    from gateway.queue.dispatcher import Dispatcher as Dispatcher
    from gateway.queue.filter import Filter as Filter
    from gateway.queue.filter import is_client as is_client
    from gateway.queue.filter import regex as regex
    from gateway.queue.memory import MemoryQueue as MemoryQueue
    from gateway.queue.retry import next_attempt as next_attempt
    from gateway.queue.store import AGES as AGES
    from gateway.queue.store import ENDED as ENDED
    from gateway.queue.store import MOVES as MOVES
    from gateway.queue.store import Finish as Finish
    from gateway.queue.store import Loss as Loss
    from gateway.queue.store import Queue as Queue
    from gateway.queue.store import Rest as Rest
    from gateway.queue.store import Snapshot as Snapshot
    from gateway.queue.store import Stats as Stats
    from gateway.queue.store import View as View
    from gateway.queue.store import Wreck as Wreck
    from gateway.queue.store import lane as lane
    from gateway.queue.suspension import Suspension as Suspension

#: name -> the module it lives in; whoever needs the contract loads no dispatcher.
_HOME = {
    "AGES": "store",
    "ENDED": "store",
    "MOVES": "store",
    "ClaimLost": "gateway.errors",
    "Dispatcher": "dispatcher",
    "Filter": "filter",
    "Finish": "store",
    "Loss": "store",
    "MemoryQueue": "memory",
    "Queue": "store",
    "QueueDamaged": "gateway.errors",
    "QueueError": "gateway.errors",
    "QueueFull": "gateway.errors",
    "QueueLocked": "gateway.errors",
    "RecipientState": "gateway.envelope",
    "Rest": "store",
    "Snapshot": "store",
    "Stats": "store",
    "Suspension": "suspension",
    "View": "store",
    "Wreck": "store",
    "bounce_envelope": "bounce",
    "is_client": "filter",
    "lane": "store",
    "next_attempt": "retry",
    "regex": "filter",
}

__all__ = list(_HOME)
__getattr__ = lazy(__name__, _HOME)
