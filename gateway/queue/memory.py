"""A store that keeps all in memory: for tests, and to measure what a disk costs. A crash loses everything."""

from __future__ import annotations

import tempfile
import time
from bisect import bisect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.message import FileBody, Message
from gateway.queue.store import AGES, ENDED, Queue, Rest, Snapshot, Stats, View, lane

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from gateway.address import Address
    from gateway.envelope import Entry, EntryRecipient, Recipient
    from gateway.queue.filter import Filter
    from gateway.queue.store import Finish
    from gateway.queue.suspension import Suspension


class MemoryQueue(Queue):
    """Entries in a dict. `now` gives the time in seconds since the epoch."""

    def __init__(self, now: Callable[[], float] = time.time, lifetime: float = 7 * 86400.0) -> None:
        self._now = now
        self._lifetime = lifetime
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._entries: dict[str, Entry] = {}
        self._delivered: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        #: Ids of finished entries -> when they ended.
        self._finished: dict[str, float] = {}
        self._suspended: dict[str, Suspension] = {}
        self._last_lane = ""

    async def open(self) -> None:
        """Give claims back, as after a crash."""
        self._folder = tempfile.TemporaryDirectory(prefix="mailward-memory-queue-")
        self.spool_folder = Path(self._folder.name)
        for entry in self._entries.values():
            entry.recipients = [
                one.given_back() if one.state == "attempting" else one for one in entry.recipients
            ]

    async def close(self) -> None:
        """Drop the spool folder; the entries stay in this object."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def add(self, entry: Entry) -> None:
        """Store an entry."""
        body = entry.message.body
        if isinstance(body, FileBody) and body.path.parent == self.spool_folder:
            entry.message.body = body.path.read_bytes()
            body.path.unlink()
        self._add(entry)

    def _add(self, entry: Entry) -> None:
        kept = _copy(entry, entry.recipients)
        kept.size = entry.size or entry.message.size
        self._entries[entry.id] = kept
        self._delivered[entry.id] = 0
        self._numbers[entry.id] = max((one.number for one in kept.recipients), default=-1) + 1
        for one in kept.recipients:
            if one.state == "held":
                one.due = self._now()

    async def restore(self, snapshot: Snapshot) -> bool:
        """Store an entry as it was elsewhere."""
        entry = snapshot.entry
        if await self.known([entry.id]):
            return False
        since = {one.number: one.due for one in entry.recipients}
        await self.add(entry)
        for one in self._entries[entry.id].recipients:
            one.due = since[one.number]
        self._delivered[entry.id] = snapshot.delivered
        self._numbers[entry.id] = max(self._numbers[entry.id], snapshot.numbers)
        return True

    async def known(self, ids: Collection[str]) -> set[str]:
        """Give those of the ids that are held, or were finished within the lifetime."""
        while self._finished and next(iter(self._finished.values())) < self._now() - self._lifetime:
            del self._finished[next(iter(self._finished))]
        return {id_ for id_ in ids if id_ in self._entries or id_ in self._finished}

    async def remember(self, ended: Mapping[str, float]) -> None:
        """Take messages for finished that ended elsewhere."""
        both = {**ended, **self._finished}
        self._finished = dict(sorted(both.items(), key=lambda one: one[1]))

    def views(self) -> Sequence[View]:
        """Open the one part that there is."""
        return [_View(self._entries, self._delivered, self._numbers)]

    async def claim(self, now: float, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        """Claim lane by lane, from where the last claim stopped."""
        lanes: dict[str, list[tuple[Entry, EntryRecipient]]] = {}
        for entry in self._entries.values():
            for one in entry.recipients:
                if one.state == "queued" and one.due <= now:
                    lanes.setdefault(lane(entry, one), []).append((entry, one))
        taken: list[tuple[Entry, EntryRecipient]] = []
        for name in sorted(lanes, key=lambda name: (name <= self._last_lane, name)):
            if len(taken) >= limit:
                break
            room = min(max(0, per_lane - busy.get(name, 0)), limit - len(taken))
            taken += lanes[name][:room]
            self._last_lane = name
        return self._claimed(taken)

    def _claimed(self, taken: Sequence[tuple[Entry, EntryRecipient]]) -> list[Entry]:
        found: dict[str, list[EntryRecipient]] = {}
        for entry, one in taken:
            claimed = entry.recipients[entry.recipients.index(one)] = one.taken()
            found.setdefault(entry.id, []).append(claimed)
        return [_copy(self._entries[id_], some) for id_, some in found.items()]

    async def finish(self, finishes: Sequence[Finish]) -> None:
        """End attempts."""
        for finish in finishes:
            for birth in finish.births:
                self._add(birth)
            self._finish(finish)

    def _finish(self, finish: Finish) -> None:
        entry = self._entries[finish.entry.id]
        new = {one.number: replace(one) for one in finish.recipients}
        self._delivered[entry.id] += sum(one.state == "delivered" for one in new.values())
        entry.recipients = [new.get(one.number, one) for one in entry.recipients]
        entry.recipients = [one for one in entry.recipients if one.state != "delivered"]
        if all(one.state in ENDED for one in entry.recipients):
            self._forget(entry)
            self._finished[entry.id] = self._now()
        elif finish.bounced:
            entry.recipients = [one for one in entry.recipients if one.state not in ENDED]

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.id], self._delivered[entry.id], self._numbers[entry.id]

    async def rest(self, entry_id: str, numbers: Collection[int]) -> Rest:
        """Tell what the entry holds beside these recipients."""
        others = [one for one in self._entries[entry_id].recipients if one.number not in numbers]
        failures = [replace(one) for one in others if one.state in ENDED]
        held = sum(one.state == "held" for one in others)
        return Rest(len(others) - len(failures) - held, held, self._delivered[entry_id], failures)

    async def split(self, entry: Entry, number: int, recipients: Sequence[EntryRecipient]) -> None:
        """Put several queued recipients in the place of a claimed one."""
        first = self._numbers[entry.id]
        self._numbers[entry.id] += len(recipients)
        kept = self._entries[entry.id]
        kept.recipients = [one for one in kept.recipients if one.number != number]
        kept.recipients += [replace(one, number=first + i) for i, one in enumerate(recipients)]

    async def release_claims(self, entries: Sequence[Entry]) -> None:
        """Give claimed recipients back."""
        for entry in entries:
            numbers = {one.number for one in entry.recipients}
            kept = self._entries[entry.id]
            kept.recipients = [one.given_back() if one.number in numbers else one for one in kept.recipients]

    async def next_due(self) -> float | None:
        """When the earliest unclaimed recipient is due."""
        entries = self._entries.values()
        return min(
            (r.due for entry in entries for r in entry.recipients if r.state == "queued"), default=None
        )

    async def get(self, entry_id: str) -> Entry | None:
        """Give one entry with its message."""
        entry = self._entries.get(entry_id)
        return entry and _copy(entry, entry.recipients)

    async def retry(self, wanted: Filter) -> list[Entry]:
        """Make queued recipients due now."""
        return self._change(wanted, {"queued"}, lambda _, one: replace(one, due=self._now()))

    async def hold(self, wanted: Filter) -> list[Entry]:
        """Move queued recipients to held."""
        return self._change(wanted, {"queued"}, lambda _, one: replace(one, state="held", due=self._now()))

    async def release(self, wanted: Filter) -> list[Entry]:
        """Move held recipients to queued; the time held is added to the entry's birth."""
        aged: dict[str, float] = {}

        def release(entry: Entry, one: EntryRecipient) -> EntryRecipient:
            aged[entry.id] = self._now() - one.due
            recipient = replace(one.recipient, held="", held_by="")
            return replace(one, recipient=recipient, state="queued", due=self._now())

        self._change(wanted, {"held"}, release)
        for id_, seconds in aged.items():
            self._entries[id_].birth += max(0.0, seconds)
        return [self._shown(id_) for id_ in aged]

    async def redirect(self, wanted: Filter, to: Address) -> list[Entry]:
        """Give queued and held recipients another address."""
        return self._readdress(wanted, lambda one: one.redirected(to))

    async def reroute(self, wanted: Filter) -> list[Entry]:
        """Give queued and held recipients the address that the sender wrote."""
        return self._readdress(wanted, lambda one: one.rerouted())

    def _readdress(self, wanted: Filter, change: Callable[[Recipient], Recipient]) -> list[Entry]:
        return self._change(
            wanted, {"queued", "held"}, lambda _, one: one.anew(change(one.recipient), self._now())
        )

    async def suspend(self, suspension: Suspension) -> bool:
        """Keep a suspension."""
        before = self._suspended.get(suspension.name)
        self._suspended[suspension.name] = suspension
        return before != suspension

    async def resume(self, name: str) -> Suspension | None:
        """Forget a suspension."""
        return self._suspended.pop(name, None)

    async def suspended(self) -> list[Suspension]:
        """Give the suspensions that run."""
        return [one for _, one in sorted(self._suspended.items()) if one.runs(self._now())]

    def _change(
        self,
        wanted: Filter,
        states: set[str],
        change: Callable[[Entry, EntryRecipient], EntryRecipient],
    ) -> list[Entry]:
        found = [(entry, one) for entry, one in self._matching(wanted) if one.state in states]
        for entry, one in found:
            entry.recipients[entry.recipients.index(one)] = change(entry, one)
        return [self._shown(id_) for id_ in dict.fromkeys(entry.id for entry, _ in found)]

    async def take(self, wanted: Filter, limit: int = 1000) -> list[Entry]:
        """Claim queued and held recipients whatever their due time."""
        found = [pair for pair in self._matching(wanted) if pair[1].state in ("queued", "held")]
        return self._claimed(found[:limit])

    async def delete(self, wanted: Filter) -> list[Entry]:
        """Forget whole entries, without a bounce."""
        found = {entry.id for entry, _ in self._matching(wanted)}
        busy = {id_ for id_ in found if any(r.state == "attempting" for r in self._entries[id_].recipients)}
        gone = [self._shown(id_) for id_ in sorted(found - busy)]
        for entry in gone:
            self._forget(entry)
        return gone

    async def stats(self) -> list[Stats]:
        """Count recipients by domain, state and age."""
        found: dict[tuple[str, str], list[float]] = {}
        for entry, one in self._pairs():
            if one.state not in ENDED:
                key = (one.recipient.original.domain, one.state)
                found.setdefault(key, []).append(entry.birth)
        return [
            Stats(*key, len(births), min(births), _ages(births, self._now()))
            for key, births in sorted(found.items())
        ]

    def _matching(self, wanted: Filter) -> list[tuple[Entry, EntryRecipient]]:
        return [pair for pair in self._pairs() if wanted.matches(*pair)]

    def _pairs(self) -> Iterator[tuple[Entry, EntryRecipient]]:
        for entry in self._entries.values():
            for one in entry.recipients:
                yield entry, one

    def _shown(self, entry_id: str) -> Entry:
        entry = self._entries[entry_id]
        return replace(_copy(entry, entry.recipients), message=Message(b""))

    async def list(self, wanted: Filter, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give entries in order of id, without bodies."""
        found = sorted({entry.id for entry, _ in self._matching(wanted) if entry.id > after})
        return [self._shown(id_) for id_ in found[:limit]]


class _View(View):
    """The entries of a MemoryQueue."""

    name = "memory"

    def __init__(self, entries: dict[str, Entry], delivered: dict[str, int], numbers: dict[str, int]) -> None:
        self._entries, self._delivered, self._numbers = entries, delivered, numbers

    def count(self) -> int:
        return len(self._entries)

    def snapshots(self) -> Iterator[Snapshot]:
        seen: set[str] = set()
        while new := [one for one in self._entries.values() if one.id not in seen and self._due(one, seen)]:
            for entry in new:
                seen.add(entry.id)
                if entry.id in self._entries:
                    copy = _copy(entry, entry.recipients)
                    yield Snapshot(copy, self._delivered[entry.id], self._numbers[entry.id])

    def _due(self, entry: Entry, seen: set[str]) -> bool:
        """Tell whether an entry was there at the start, or may have been born from one that was."""
        return not seen or bool(entry.parent)

    def close(self) -> None:
        """Nothing is held."""


def _copy(entry: Entry, recipients: Sequence[EntryRecipient]) -> Entry:
    return replace(entry, message=entry.message.copy(), recipients=[replace(one) for one in recipients])


def _ages(births: Sequence[float], now: float) -> list[int]:
    """Count births by age, in the columns of AGES and one behind them."""
    counts = [0] * (len(AGES) + 1)
    for birth in births:
        counts[bisect(AGES, (now - birth) / 60)] += 1
    return counts
