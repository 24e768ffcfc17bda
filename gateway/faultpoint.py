"""Named steps of a message's life, at which a test kills the process or lets a call fail.

`point(name)` does nothing. Only where MAILWARD_FAULT stands in the environment while this module is
imported is it another function: a gateway that serves mail has no switch that could be turned, and pays
one empty call. The variable is read again at each passage, so that a child which was forked may have a
fault that its parent has not:

  MAILWARD_FAULT="queue.commit kill 3"     ends the process by SIGKILL at the third passage
  MAILWARD_FAULT="body.sync ENOSPC 1"      raises OSError(ENOSPC) at the first
  MAILWARD_FAULT=none                      ready for another value, until then nothing
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "MAILWARD_FAULT"
#: Every step, from start to finish; what is true when it is passed.
STEPS: dict[str, str] = {
    "journal.open": "a torn last line was cut",
    "queue.create": "the new file is whole, under another name; the schema is made, not committed",
    "queue.created": "it has its name; it is committed",
    "queue.sweep": "what was never committed is gone, claims are not given back yet",
    "body.sweep": "a file that no row names is about to go",
    "start.recover": "the queue is open; what the journal lacks is not told yet",
    "start.recovered": "it is told, perhaps not written",
    "start.serve": "all runs, nobody listens",
    "spool.create": "a body becomes too large for memory",
    "spool.write": "more of it comes",
    "spool.close": "it is whole, in a file not yet synced",
    "reception.content": "the content is here, no stage was asked",
    "reception.commit": "the stages let it through",
    "body.sync": "a spooled body is about to be synced",
    "body.link": "it is synced",
    "body.folder": "it has its name among the bodies",
    "body.kept": "the name is synced",
    "queue.begin": "a transaction has begun",
    "queue.add": "the entry's row is written, its recipients are not",
    "body.part": "some pieces of its body are in the database, and invisible",
    "queue.receiving": "an entry of many recipients is stored, invisible",
    "queue.part": "some of its recipients are stored",
    "queue.flip": "all are; it is still invisible",
    "queue.commit": "a transaction is about to be committed",
    "queue.committed": "it is, and nobody knows",
    "body.taken": "the spooled name of a stored body is about to go",
    "queue.handed": "a committed entry waits in memory",
    "reception.committed": "the store has said yes",
    "reception.told": "message.accepted is emitted; the client has no 250",
    "body.fetched": "a body has come from the database, under another name",
    "queue.claim": "recipients are claimed, not committed",
    "queue.release": "claims are about to be given back",
    "dispatch.claimed": "an entry is ours, not routed",
    "dispatch.split": "one recipient has become several, not stored",
    "queue.split": "the one is gone, the several are not there, not committed",
    "dispatch.routed": "its recipients have their routes, in memory",
    "dispatch.slot": "an attempt has its slot",
    "attempt.begun": "delivery.started is emitted",
    "attempt.deliver": "the copy to send is ready",
    "maildir.write": "nothing of the message is in the Maildir",
    "maildir.sync": "it is in tmp, not synced",
    "maildir.rename": "it is in tmp, synced",
    "maildir.folder": "it is in new, the name not synced",
    "maildir.done": "it is in new for good",
    "mbox.locked": "nothing of the message is in the mbox",
    "mbox.sync": "it is there, not synced",
    "mbox.done": "it is there for good",
    "program.start": "a program is about to run",
    "program.ended": "it has ended",
    "remote.content": "the other host takes the content",
    "remote.dot": "the final dot is on its way",
    "remote.answered": "the other host has answered it",
    "attempt.delivered": "the outcome is known, to us alone",
    "attempt.births": "what the delivery gave birth to is admitted, in memory",
    "attempt.bounce": "the last recipient has ended, one of them failed",
    "attempt.bounced": "the bounce is written, in memory",
    "attempt.told": "the events of the attempt are emitted",
    "journal.write": "a batch of events is about to be written",
    "journal.segment": "a new segment is made, its name not synced",
    "journal.sync": "the batch is written, not synced",
    "journal.synced": "it is synced, and nobody knows",
    "attempt.safe": "the events of the attempt are on stable storage",
    "queue.finish": "births are written, the end of the attempt is not",
    "queue.forget": "the message is about to be forgotten",
    "queue.settle": "some recipients have ended, others have not",
    "body.forget": "a body that no row names any more is about to go",
    "attempt.ended": "the attempt's end is committed",
    "attempt.over": "its births are told",
}


class _Armed:
    """Counts passages, and does what the environment asks for."""

    def __init__(self) -> None:
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        if name not in STEPS:
            raise LookupError(f"no step is named {name}")
        with self._lock:
            self._passed[name] += 1
            passed = self._passed[name]
        step, _, wanted = os.environ[VARIABLE].partition(" ")
        if step == name:
            action, nth = wanted.split()
            if passed == int(nth):
                _act(action)


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    number = getattr(errno, action)
    raise OSError(number, os.strerror(number))


def _nothing(name: str) -> None:
    """Pass a step where no test looks on."""


point: Callable[[str], None] = _Armed() if VARIABLE in os.environ else _nothing
