"""The contract of a queue: what a store must do, whatever keeps the bytes.

States of a message        states of a recipient
  receiving                  queued      waits for its `due` time
  queued                     attempting  a dispatcher has claimed it
  finished                   held        waits for a person
                             delivered | failed | expired    it has ended

The moves of a recipient, and what makes each:

  from         to           by
  (new)        queued       add
  (new)        held         add, when a stage said Hold
  queued       attempting   claim; take, whatever its due time (a person said: bounce it now)
  held         attempting   take
  attempting   delivered    finish
  attempting   failed       finish
  attempting   expired      finish
  attempting   queued       finish (deferred), release_claims, open after a crash
  attempting   (gone)       split: several new ones, queued, stand in its place
  queued       held         hold
  held         queued       release

`receiving -> queued` is the commit: before it nothing is visible, after it nothing may be lost.
A message is `finished`, and forgotten, with the transaction that ends its last recipient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from gateway.envelope import Entry, EntryRecipient, RecipientState

#: (from, to) -> the operation that makes the move; "" is outside the queue.
MOVES: dict[tuple[str, str], str] = {
    ("", "queued"): "add",
    ("", "held"): "add",
    ("queued", "attempting"): "claim",
    ("held", "attempting"): "take",
    ("attempting", "delivered"): "finish",
    ("attempting", "failed"): "finish",
    ("attempting", "expired"): "finish",
    ("attempting", "queued"): "finish",
    ("attempting", ""): "split",
    ("queued", "held"): "hold",
    ("held", "queued"): "release",
}
ENDED: frozenset[RecipientState] = frozenset({"delivered", "failed", "expired"})


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one attempt, for one transaction: all of it is stored, or nothing."""

    entry: Entry
    #: The recipients of the attempt, in their new state (route, due, report, attempts set).
    recipients: Sequence[EntryRecipient]
    #: Forwards, list posts and the bounce: stored as new queued entries in the same transaction.
    births: Sequence[Entry] = ()
    #: One of the births is the bounce: failures of this entry are told, and forgotten.
    bounced: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries an operation is for; empty fields match all."""

    ids: Collection[str] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    state: str = ""
    #: Entries born before this time, seconds since the epoch; 0 matches all.
    born_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Rest:
    """What an entry holds beside some of its recipients; it says who is the last one."""

    #: How many of the others have not ended, those held not counted: these do not delay a bounce.
    open: int
    held: int = 0
    #: How many recipients of the entry were delivered before.
    delivered: int = 0
    #: Those of the others that have failed or expired.
    failures: Sequence[EntryRecipient] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """One row of `queue stats`: how many recipients of a domain are in a state, and since when."""

    domain: str
    state: str
    recipients: int
    #: Birth of the oldest, seconds since the epoch.
    oldest: float


class Queue(ABC):
    """A store. All calls are coroutines of the owner's loop; a call that returns has committed.

    Raises QueueFull when the disk has no room (nothing was stored, later calls may succeed),
    QueueError for any other doubt.
    """

    #: Where a Spool may put its file: on the store's own file system.
    spool_folder: Path

    @abstractmethod
    async def open(self) -> None:
        """Take the lock, check the file, sweep what was never committed, give claims back.

        Raises QueueLocked, QueueDamaged, QueueError.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what waits, and give the lock back. The store may be opened again."""

    @abstractmethod
    async def add(self, entry: Entry) -> None:
        """Store an entry; returns when it is on stable storage (one fsync may serve many calls).

        A body file in `spool_folder` then belongs to the store, and `entry.message.body` says where it
        is. When this raises, the file is still the caller's.
        """

    @abstractmethod
    async def claim(self, now: float, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        """Take recipients that are due at `now`; they are ours until `finish`, `split` or `release_claims`.

        The entries given hold only what this call took, in state `attempting`; other recipients of the same
        entry may be ours already, or be given later. Fair: round robin over lanes (sender and recipient
        domain), at most `per_lane` recipients of one lane less what `busy` says we hold of it, and at most
        `limit` recipients in all.
        """

    @abstractmethod
    async def finish(self, finishes: Sequence[Finish]) -> None:
        """End attempts: one transaction for all of them. Forgets an entry whose recipients have all ended."""

    @abstractmethod
    async def rest(self, entry_id: str, numbers: Collection[int]) -> Rest:
        """Tell what the entry holds beside these recipients."""

    @abstractmethod
    async def split(self, entry: Entry, number: int, recipients: Sequence[EntryRecipient]) -> None:
        """Put several queued recipients in the place of a claimed one; the store gives them their numbers."""

    @abstractmethod
    async def release_claims(self, entries: Sequence[Entry]) -> None:
        """Give claimed recipients back as `queued`, unchanged: the attempt was not made."""

    @abstractmethod
    async def next_due(self) -> float | None:
        """When the earliest unclaimed recipient is due (a time in the past: now); None when nothing waits."""

    @abstractmethod
    async def get(self, entry_id: str) -> Entry | None:
        """Give one entry with its message."""

    @abstractmethod
    async def retry(self, wanted: Filter) -> list[Entry]:
        """Make queued recipients due now. Gives the entries touched, as they are after it, without bodies."""

    @abstractmethod
    async def hold(self, wanted: Filter) -> list[Entry]:
        """Move queued recipients to held. Recipients under attempt are left alone."""

    @abstractmethod
    async def release(self, wanted: Filter) -> list[Entry]:
        """Move held recipients to queued, due now. The time held is added to the entry's birth."""

    @abstractmethod
    async def take(self, wanted: Filter, limit: int = 1000) -> list[Entry]:
        """Claim queued and held recipients whatever their due time, as `claim` does."""

    @abstractmethod
    async def delete(self, wanted: Filter) -> list[Entry]:
        """Forget whole entries, without a bounce. Entries with a claimed recipient are left alone."""

    @abstractmethod
    async def stats(self) -> list[Stats]:
        """Count recipients by domain and state."""

    @abstractmethod
    async def list(self, wanted: Filter, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give entries in order of id, without bodies in memory; page on with `after`."""


def lane(entry: Entry, recipient: EntryRecipient) -> str:
    """Name the lane of a recipient: who sends, and to which domain. Fairness is between lanes.

    The domain is the one that the sender wrote, so that `rewrite` moves nobody to another lane.
    """
    return f"{entry.sender}\0{recipient.recipient.original.domain}"
