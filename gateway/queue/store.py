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
  attempting   held         release_claims, open after a crash, when it was held before `take`
  attempting   (gone)       split: several new ones, queued, stand in its place
  queued       held         hold
  held         queued       release

`retry`, `redirect` and `reroute` leave the state as it is.

`receiving -> queued` is the commit: before it nothing is visible, after it nothing may be lost.
A message is `finished`, and forgotten, with the transaction that ends its last recipient; its id is kept
for the lifetime of a message, so that no archive brings it back. `restore` puts an entry in as it was in
another store: its recipients are queued, held, failed or expired.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gateway.errors import QueueError
from gateway.queue.filter import Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from gateway.address import Address
    from gateway.counters import Counters
    from gateway.envelope import Entry, EntryRecipient, RecipientState
    from gateway.queue.suspension import Suspension

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
    ("attempting", "held"): "release_claims",
    ("attempting", ""): "split",
    ("queued", "held"): "hold",
    ("held", "queued"): "release",
}
ENDED: frozenset[RecipientState] = frozenset({"delivered", "failed", "expired"})
#: Bounds of the columns of `Stats.ages`, in minutes; the last column has none.
AGES = (5, 10, 20, 40, 80, 160, 320, 640, 1280)


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

    #: As the sender wrote it.
    domain: str
    state: str
    recipients: int
    #: Birth of the oldest, seconds since the epoch.
    oldest: float
    #: How many of them are how old: younger than the first of AGES, than the second ..., and the rest.
    ages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One entry in one consistent state, with what an Entry alone does not tell: what an archive keeps."""

    #: Its recipients that have not been delivered; `due` of a held one says since when it is held.
    entry: Entry
    #: How many of its recipients were delivered.
    delivered: int = 0
    #: The number that its next new recipient gets: numbers name files in mailboxes, so none comes twice.
    numbers: int = 0


class View(ABC):
    """Reads one part of a store (a shard) beside its owner: by short transactions, without a lock.

    Synchronous: whoever reads has a process or a thread for it. Raises QueueError.
    """

    #: What people call this part: "shard-0".
    name: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def count(self) -> int:
        """Count the entries; while the owner works it is near enough for a progress bar."""

    @abstractmethod
    def snapshots(self) -> Iterator[Snapshot]:
        """Give the entries that were there when this began, each in one consistent state of its own.

        One that ends meanwhile is left out, but then what it gave birth to is given. A body that is a file
        may vanish before it is opened: then, too, the entry has ended. It may be there only until the next
        entry is asked for.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A message in a damaged part of a store of which something cannot be read."""

    #: "" when not even that can be.
    id: str
    sender: str
    #: What cannot be read.
    missing: str
    #: Who still waited for it, as the sender wrote it and as far as it is known; bounded.
    recipients: Sequence[Address] = ()
    #: The rest of the message is among the snapshots.
    saved: bool = False


class Wreck(View):
    """Reads what is whole in a damaged part of a store, and changes nothing there.

    `read` comes first; `count`, `oldest` and `snapshots` tell what it has found, and `losses` what it and
    `snapshots` have not. What ended before may be among the snapshots where it cannot be told any more.
    """

    #: Nothing can be lost but what `losses` names.
    sure: bool

    @abstractmethod
    def read(self) -> Iterator[tuple[int, int]]:
        """Look through all of it; gives how far it has come, and of how much."""

    @abstractmethod
    def finished(self) -> Iterator[tuple[str, float]]:
        """Give the ids of messages that have ended, and when they did."""

    @abstractmethod
    def oldest(self) -> float:
        """Give the birth of the oldest message, infinity when there is none."""

    @abstractmethod
    def lose(self, snapshot: Snapshot, missing: str) -> None:
        """Count a snapshot among the losses, since nobody can use it."""

    @abstractmethod
    def losses(self) -> Iterator[Loss]:
        """Give the messages of which something is lost."""


class Queue(ABC):
    """A store. All calls are coroutines of the owner's loop; a call that returns has committed.

    Raises QueueFull when the disk has no room (nothing was stored, later calls may succeed),
    QueueError for any other doubt.
    """

    #: All owners see one queue, so what is done to it is asked of one of them only.
    shared: ClassVar[bool] = False
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
    async def restore(self, snapshot: Snapshot) -> bool:
        """Store an entry as it was elsewhere: states, attempts and numbers. The rest is as `add` does it.

        False, and nothing is stored, when this part of the store holds its id or has finished it within the
        lifetime; `known` asks all parts. A deleted message may come back.
        """

    @abstractmethod
    async def known(self, ids: Collection[str]) -> set[str]:
        """Give those of the ids that any part of the store holds, or has finished within the lifetime."""

    @abstractmethod
    async def remember(self, ended: Mapping[str, float]) -> None:
        """Take messages for finished that ended elsewhere, each with its time.

        No archive brings them back.
        """

    @abstractmethod
    def views(self) -> Sequence[View]:
        """Open all parts of the store to be read; the store itself need not be open. Raises QueueError."""

    def estate(self, folder: Path) -> Queue:
        """Give the part that a dead owner has left in a folder, not yet open. Raises QueueError."""
        raise QueueError(f"{folder}: this store keeps nothing in folders, so there is nothing to adopt")

    def wreck(self, path: Path) -> Wreck:
        """Open a damaged part of a store: its folder or file. Raises QueueError."""
        raise QueueError(f"{path}: this store keeps nothing in files, so there is nothing to salvage")

    @abstractmethod
    async def claim(self, now: float, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        """Take recipients that are due at `now`; they are ours until `finish`, `split` or `release_claims`.

        The entries given hold only what this call took, in state `attempting`; other recipients of the same
        entry may be ours already, or be given later. Fair: round robin over lanes (sender and recipient
        domain), at most `per_lane` recipients of one lane less what `busy` says we hold of it, and at most
        `limit` recipients in all.
        """

    def listen(self, wake: Callable[[], None]) -> None:  # noqa: B027 - most stores have nothing to do
        """Call `wake` when others may have stored something to claim; nobody does in a store of one owner."""

    async def confirm(self, entry_id: str) -> None:  # noqa: B027 - the same
        """Return when what we have claimed of an entry is surely ours; asked before each delivery.

        Raises ClaimLost when another node has taken it over.
        """

    def ours(self, entry_id: str) -> bool:
        """Whether that still holds; asked, without waiting, before the last byte of a delivery."""
        del entry_id
        return True

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
        """Move held recipients to queued, due now. The time held is added to the entry's birth.

        Why they were held (`held` and `held_by` of the recipient) is forgotten.
        """

    @abstractmethod
    async def take(self, wanted: Filter, limit: int = 1000) -> list[Entry]:
        """Claim queued and held recipients whatever their due time, as `claim` does."""

    @abstractmethod
    async def delete(self, wanted: Filter) -> list[Entry]:
        """Forget whole entries, without a bounce. Entries with a claimed recipient are left alone."""

    @abstractmethod
    async def redirect(self, wanted: Filter, to: Address) -> list[Entry]:
        """Give queued and held recipients another address, to be rewritten and routed anew.

        `Recipient.redirected` says what becomes of the recipient; its route, report and status are
        forgotten, its state, number and attempts stay. Queued ones are due now.
        """

    @abstractmethod
    async def reroute(self, wanted: Filter) -> list[Entry]:
        """As `redirect`, with the address that the sender wrote (`Recipient.rerouted`)."""

    @abstractmethod
    async def suspend(self, suspension: Suspension) -> bool:
        """Keep a suspension; one of the same name is replaced. It counts for all that work this queue.

        False when exactly this one was kept before: another worker had been asked too.
        """

    @abstractmethod
    async def resume(self, name: str) -> Suspension | None:
        """Forget the suspension of this name; gives it, or None when there was none (any more)."""

    @abstractmethod
    async def suspended(self) -> list[Suspension]:
        """Give the suspensions that run at this moment, sorted by name.

        Asked once a second while nothing is suspended, and twice for each delivery that is put off.
        """

    @abstractmethod
    async def stats(self) -> list[Stats]:
        """Count the recipients that have not ended, by domain, state and age."""

    async def accepted(self, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give what this worker has stored itself, as `list` does; of a shared queue others have the rest."""
        return await self.list(Filter(), limit, after)

    @abstractmethod
    async def list(self, wanted: Filter, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give entries in order of id, without bodies in memory; page on with `after`."""

    def counters(self, local: Counters) -> Counters:
        """Give the counters of all that work this queue, open or not; `local` are those of this gateway."""
        return local


def lane(entry: Entry, recipient: EntryRecipient) -> str:
    """Name the lane of a recipient: who sends, and to which domain. Fairness is between lanes.

    The domain is the one that the sender wrote, so that `rewrite` moves nobody to another lane.
    """
    return f"{entry.sender}\0{recipient.recipient.original.domain}"
