"""What journals tell of the fate of archived messages: who need not get one again.

A recipient is left out only if its end is told, and the end of all that it gave birth to: a forward that was
stored after the backup is lost with the queue, and only its parent can give birth to it once more. What is in
the archive itself, or where it is restored to, is safe. What is not told counts as not done.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from gateway.journal.formats import own, seconds
from gateway.journal.line import MOST, clean
from gateway.queue.store import ENDED, Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from gateway.envelope import Entry, EntryRecipient
    from gateway.queue.archive.writer import Manifest

_ENDS = {"delivery.delivered": "delivered", "delivery.failed": "failed", "message.expired": "failed"}
#: Seconds by which a file's time may be before that of its last event.
_SLACK = 60.0
_OVER = ("message.finished", "message.deleted")
#: A cheap sieve, before a line is parsed.
_TOLD = re.compile(rb"delivery\.(?:delivered|failed)|message\.(?:accepted|bounced|deleted|expired|finished)")


#: Where a line of a journal stands, so that a hole is seen.
_PLACE = re.compile(rb'"host":"([^"]*)","stream":"([^"]*)","sequence":(\d+)')


@dataclass(frozen=True, slots=True)
class _End:
    """How a recipient ended, as it was told last: an attempt that a crash repeats is told twice."""

    when: float
    result: str
    births: tuple[str, ...]


@dataclass(slots=True)
class _Fate:
    """What is told of one message."""

    #: Number of a recipient -> its end.
    ends: dict[int, _End] = field(default_factory=dict)
    #: Id of a bounce ("": nobody was to be told) -> the recipients that it names.
    bounces: dict[str, frozenset[str]] = field(default_factory=dict)
    #: Messages that name this one as their parent.
    children: set[str] = field(default_factory=set)
    over: str = ""

    def births(self) -> set[str]:
        """Give all that this message gave birth to."""
        born = {birth for end in self.ends.values() for birth in end.births}
        return born | self.children | (self.bounces.keys() - {""})


@dataclass(frozen=True, slots=True)
class Lost:
    """A message that was accepted after the backup, and whose end nobody has told."""

    id: str
    sender: str
    #: What gave birth to it, "" for mail from outside.
    parent: str
    time: float


@dataclass(slots=True)
class Judged:
    """What is left of a message, and what was decided."""

    #: None when all its recipients have ended.
    snapshot: Snapshot | None
    #: Recipients that are left out.
    ended: int = 0
    #: Why a recipient gets it again although its end is told.
    doubts: list[str] = field(default_factory=list)


class Fates:
    """Reads journals, and judges the messages of one archive by them."""

    def __init__(self, manifest: Manifest, ids: Collection[str], sources: Sequence[Path]) -> None:
        self._manifest = manifest
        self._archived = frozenset(ids)
        #: The archived messages and their descendants, as far as they are told.
        self._family = set(ids)
        self._fates: dict[str, _Fate] = {}
        self._later: dict[str, Lost] = {}
        self._ended: set[str] = set()
        #: Stream -> how many of its events were read that came after the backup, and the last of them.
        self._read: dict[str, tuple[int, int]] = {}
        #: What is in the queue, or has ended there, where the archive is restored to.
        self.present: Collection[str] = frozenset()
        known = -1
        # Exports come in any order: read until no more descendants are found.
        while known != len(self._family):
            known = len(self._family)
            self._read.clear()
            for line in _lines(sources, manifest.created - _SLACK):
                self._count(line)
                for one in _parsed(line):
                    self._note(one)

    def mentioned(self) -> set[str]:
        """Give the messages whose presence where the archive is restored to would matter."""
        return (self._family | self._later.keys()) - self._archived

    def judge(self, snapshot: Snapshot) -> Judged:
        """Leave out the recipients that have ended."""
        entry, judged = snapshot.entry, Judged(None)
        kept: list[EntryRecipient] = []
        delivered = 0
        fate = self._fates.get(entry.id, _Fate())
        for one in entry.recipients:
            doubt = self._doubt(fate, one)
            if doubt is not None:
                kept.append(one)
                judged.doubts += [f"{entry.id} {one.recipient.original}: {doubt}"] if doubt else []
            elif fate.ends.get(one.number, _SURELY).result == "delivered":
                delivered += 1
        judged.ended = len(entry.recipients) - len(kept)
        if kept:
            left = replace(entry, recipients=_with_somebody_to_try(kept, entry))
            judged.snapshot = replace(snapshot, entry=left, delivered=snapshot.delivered + delivered)
        return judged

    def lost(self) -> list[Lost]:
        """Give what was accepted after the backup and has no end.

        What descends from an archived message is born again with it, and not lost.
        """
        gone = self._ended | self._family
        found = [one for one in self._later.values() if one.id not in gone and one.id not in self.present]
        return sorted(found, key=lambda one: one.time)

    def holes(self) -> dict[str, int]:
        """Give the streams of which events are missing that came after the backup, and how many."""
        missing = {
            stream: last - self._manifest.streams[stream] - count
            for stream, (count, last) in self._read.items()
        }
        return {stream: count for stream, count in sorted(missing.items()) if count > 0}

    def _count(self, line: bytes) -> None:
        found = _PLACE.search(line)
        if found is None or found[1].decode("utf-8", "replace") != self._manifest.host:
            return
        stream, sequence = found[2].decode("utf-8", "replace"), int(found[3])
        if sequence > self._manifest.streams.get(stream, sequence):
            count, last = self._read.get(stream, (0, 0))
            self._read[stream] = count + 1, max(last, sequence)

    def _note(self, one: Mapping[str, Any]) -> None:
        name, id_, parent = one["event"], str(one["message"]), str(one.get("parent", ""))
        if name == "message.accepted":
            self._accepted(one, id_, parent)
        elif name in _OVER:
            self._ended.add(id_)
        if id_ not in self._family:
            return
        fate = self._fates.setdefault(id_, _Fate())
        if name in _ENDS:
            self._note_end(fate, one)
        elif name == "message.bounced":
            bounce = str(one.get("bounce", ""))
            fate.bounces[bounce] = fate.bounces.get(bounce, frozenset()) | {*_several(one, "recipients")}
        elif name in _OVER:
            fate.over = name
        self._family |= fate.births()

    def _accepted(self, one: Mapping[str, Any], id_: str, parent: str) -> None:
        if parent in self._family:
            self._fates.setdefault(parent, _Fate()).children.add(id_)
            self._family.add(id_)
        elif self._after(one) and id_ not in self._archived:
            self._later[id_] = Lost(id_, str(one.get("sender", "")), parent, seconds(one["time"]))

    def _note_end(self, fate: _Fate, one: Mapping[str, Any]) -> None:
        number, when = int(one.get("number", 0)), seconds(one["time"])
        if number not in fate.ends or fate.ends[number].when <= when:
            fate.ends[number] = _End(when, _ENDS[one["event"]], _several(one, "births"))

    def _after(self, one: Mapping[str, Any]) -> bool:
        """Tell whether an event was told after the backup began."""
        started = self._manifest.streams.get(str(one.get("stream", "")))
        if one.get("host") == self._manifest.host and started is not None and "sequence" in one:
            return int(one["sequence"]) > started
        return seconds(one["time"]) >= self._manifest.created

    def _doubt(self, fate: _Fate, one: EntryRecipient) -> str | None:
        """Say why a recipient is kept: "" when its end is not told, None when it is to be left out."""
        end = fate.ends.get(one.number)
        if end is None and one.state in ENDED:
            end = _End(0.0, "failed", ())
        if end is None:
            if fate.over == "message.deleted":
                return None
            # One of an alias: its ends have the numbers of those who took its place.
            births = fate.births() if fate.over else set()
            return self._unsafe(births) if fate.over else ""
        attributed = {birth for other in fate.ends.values() for birth in other.births} | fate.bounces.keys()
        births = set(end.births) | (fate.children - attributed)
        if len(end.births) >= MOST:
            return "the journal does not name all that it gave birth to"
        if end.result == "failed":
            told = self._bounces_of(fate, one)
            if not told:
                return "" if one.state in ENDED else "it failed, and its sender was not told"
            births |= told - {""}
        return self._unsafe(births)

    def _bounces_of(self, fate: _Fate, one: EntryRecipient) -> set[str]:
        """Give the bounces that name a recipient; one with more names than an event holds may be any's."""
        name = clean(one.recipient.original)
        return {id_ for id_, names in fate.bounces.items() if name in names or len(names) >= MOST}

    def _unsafe(self, births: Collection[str]) -> str | None:
        open_ = sorted(birth for birth in births if not self._safe(birth, set()))
        return f"{', '.join(open_)}, born from it, has no end" if open_ else None

    def _safe(self, id_: str, seen: set[str]) -> bool:
        """Tell whether nothing of a message can be lost: it is there, or it and all its births have ended."""
        if id_ in self._archived or id_ in self.present or id_ in seen:
            return True
        fate = self._fates.get(id_)
        if fate is None or not fate.over:
            return False
        return all(self._safe(birth, seen | {id_}) for birth in fate.births())


#: Stands for an end that is not told of this number.
_SURELY = _End(0.0, "", ())


def _with_somebody_to_try(kept: list[EntryRecipient], entry: Entry) -> list[EntryRecipient]:
    """Let those who have failed be tried once more where nobody else is left, whose end would tell them."""
    if any(one.state not in ENDED for one in kept):
        return kept
    return [replace(one, state="queued", due=entry.birth) for one in kept]


def _lines(sources: Sequence[Path], since: float) -> Iterator[bytes]:
    """Give the lines of journals, and of files that were exported. Raises OSError.

    Segments of a journal that were written last before the backup tell nothing of what came after.
    """
    for source in sources:
        segments = (path for path in sorted(source.rglob("*.jsonl")) if path.stat().st_mtime >= since)
        for path in segments if source.is_dir() else [source]:
            with path.open("rb") as file:
                yield from file


def _parsed(line: bytes) -> Iterator[Mapping[str, Any]]:
    """Give the event of a line, if it matters; nothing when it is none, as a live journal's last may be."""
    if not _TOLD.search(line):
        return
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return
    event = own(record) if isinstance(record, dict) else None
    if event is None or not event.get("message") or not _TOLD.fullmatch(str(event.get("event")).encode()):
        return
    with contextlib.suppress(ValueError, TypeError):
        seconds(event.get("time"))
        yield event


def _several(one: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Give a field that is a list; some exports write one value, or a line for each."""
    found = one.get(name, ())
    return tuple(found.splitlines() if isinstance(found, str) else map(str, found))
