"""A store that keeps all in memory: for tests, and to measure what a disk costs. A crash loses everything."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.message import FileBody, Message
from gateway.queue.store import ENDED, Queue, Rest, Stats, lane

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from gateway.envelope import Entry, EntryRecipient
    from gateway.queue.store import Filter, Finish


class MemoryQueue(Queue):
    """Entries in a dict. `now` gives the time in seconds since the epoch."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._entries: dict[str, Entry] = {}
        self._delivered: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._held_since: dict[tuple[str, int], float] = {}
        self._last_lane = ""

    async def open(self) -> None:
        """Give claims back, as after a crash."""
        self._folder = tempfile.TemporaryDirectory(prefix="mailward-memory-queue-")
        self.spool_folder = Path(self._folder.name)
        for entry in self._entries.values():
            for one in entry.recipients:
                if one.state == "attempting":
                    one.state = "queued"

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
                self._held_since[entry.id, one.number] = self._now()

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
            one.state = "attempting"
            found.setdefault(entry.id, []).append(one)
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
            for one in self._entries[entry.id].recipients:
                if one.number in numbers:
                    one.state = "queued"

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

        def hold(entry: Entry, one: EntryRecipient) -> EntryRecipient:
            self._held_since[entry.id, one.number] = self._now()
            return replace(one, state="held")

        return self._change(wanted, {"queued"}, hold)

    async def release(self, wanted: Filter) -> list[Entry]:
        """Move held recipients to queued; the time held is added to the entry's birth."""
        aged: dict[str, float] = {}

        def release(entry: Entry, one: EntryRecipient) -> EntryRecipient:
            aged[entry.id] = self._now() - self._held_since.pop((entry.id, one.number))
            return replace(one, state="queued", due=self._now())

        self._change(wanted, {"held"}, release)
        for id_, seconds in aged.items():
            self._entries[id_].birth += max(0.0, seconds)
        return [self._shown(id_) for id_ in aged]

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
        """Count recipients by domain and state."""
        found: dict[tuple[str, str], list[float]] = {}
        for entry in self._entries.values():
            for one in entry.recipients:
                key = (one.recipient.address.domain, one.state)
                found.setdefault(key, []).append(entry.birth)
        return [Stats(*key, len(births), min(births)) for key, births in sorted(found.items())]

    def _matching(self, wanted: Filter) -> list[tuple[Entry, EntryRecipient]]:
        return [pair for pair in self._pairs() if _matches(wanted, *pair)]

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


def _copy(entry: Entry, recipients: Sequence[EntryRecipient]) -> Entry:
    return replace(entry, message=entry.message.copy(), recipients=[replace(one) for one in recipients])


def _matches(wanted: Filter, entry: Entry, one: EntryRecipient) -> bool:
    addresses = (one.recipient.address, one.recipient.original)
    return (
        (not wanted.ids or entry.id in wanted.ids)
        and (not wanted.sender or entry.sender == wanted.sender)
        and (not wanted.recipient or wanted.recipient in addresses)
        and (not wanted.domain or one.recipient.address.domain == wanted.domain.lower())
        and (not wanted.state or one.state == wanted.state)
        and (not wanted.born_before or entry.birth < wanted.born_before)
    )
