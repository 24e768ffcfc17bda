"""Entries that were just committed and wait in memory, so that the dispatcher need not read them back."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gateway import FileBody
from gateway.queue import lane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway import Entry

#: Bounds of what waits here; what has no room is read from the file when its turn comes.
ENTRIES = 1000
BYTES = 16 * 1024 * 1024


class Fresh:
    """Entries with one recipient, due at once, by lane. Their rows say `attempting`."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Entry]] = {}
        self._entries = 0
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def reserve(self, entry: Entry, now: float) -> bool:
        """Keep room for an entry that is about to be committed; False when it must wait in the file."""
        one = entry.recipients[0]
        size = entry.message.size
        fits = self._entries < ENTRIES and self._bytes + size <= BYTES
        plain = len(entry.recipients) == 1 and one.state == "queued" and one.due <= now
        if not (fits and plain) or isinstance(entry.message.body, FileBody):
            return False
        self._entries += 1
        self._bytes += size
        return True

    def put(self, entry: Entry) -> None:
        """Take in an entry that was committed."""
        self._lanes.setdefault(lane(entry, entry.recipients[0]), deque()).append(entry)

    def drop(self, entry: Entry) -> None:
        """Give back the room of an entry."""
        self._entries -= 1
        self._bytes -= entry.message.size

    def claim(self, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        """Take entries in turns: one of each lane, then the next of each."""
        taken: list[Entry] = []
        rooms = {name: per_lane - busy.get(name, 0) for name in self._lanes}
        while rooms and len(taken) < limit:
            for name in list(rooms):
                if rooms[name] <= 0 or name not in self._lanes or len(taken) >= limit:
                    del rooms[name]
                    continue
                rooms[name] -= 1
                taken.append(self._pop(name))
        for entry in taken:
            entry.recipients[0].state = "attempting"
        return taken

    def drain(self) -> list[Entry]:
        """Take all."""
        return [self._pop(name) for name in list(self._lanes) for _ in range(len(self._lanes[name]))]

    def _pop(self, name: str) -> Entry:
        """Take the oldest of a lane; the lane goes to the end, so that all have their turn."""
        waiting = self._lanes.pop(name)
        entry = waiting.popleft()
        if waiting:
            self._lanes[name] = waiting
        self.drop(entry)
        return entry
