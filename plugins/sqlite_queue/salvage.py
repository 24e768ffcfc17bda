"""What is whole in a damaged shard: each row that can be read, whatever has become of the pages above it.

Pages are found by the trees of the tables. Where a tree is broken, each page that no tree leads to and that
is not free is looked at, too. The shard is never written to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gateway.queue import ENDED, QueueError, Wreck

from . import disk
from .gathered import Gathered
from .pages import INDEX, TABLE, Pages
from .shard import Shard
from .view import told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.queue import Loss, Snapshot

#: Versions of the schema are small; in a damaged header there may stand anything.
VERSIONS = 99
#: Messages, or pages, that are looked at between two signs of progress.
STEP = 500
#: What names messages that wait -> the kinds of its pages. One of them whole, and all are known.
_NAMING = {"sqlite_autoindex_entry_1": INDEX, "recipient": INDEX, "entry": TABLE}
_TREES = {"finished": INDEX, **_NAMING}


class ShardWreck(Wreck):
    """The shard in a folder, or around a file."""

    def __init__(self, path: Path, schema: str) -> None:
        self.name = str(path)
        file = path / "queue.db" if path.is_dir() else path
        if not file.is_file():
            raise QueueError(f"{path} is no shard: there is no file {file}")
        self._lock = disk.hold_lock(file.parent)
        self._pages = Pages(file)
        if 0 < self._pages.version <= VERSIONS:
            disk.check_version(file, self._pages.version)
        self._gathered = Gathered(schema)
        self._shard = Shard(self._gathered.connection, file.with_name("bodies"))
        self._seen = bytearray(self._pages.count + 1)
        self.sure = False

    def close(self) -> None:
        """Let go of the files, and of what was gathered."""
        self._gathered.connection.close()
        self._pages.close()
        if self._lock:
            self._lock.close()

    def read(self) -> Iterator[tuple[int, int]]:
        """Gather the rows, and settle what is lost."""
        with told():
            yield from self._read()

    def _read(self) -> Iterator[tuple[int, int]]:
        whole = dict.fromkeys(_TREES, True)
        looked = 0
        for name, kinds in _TREES.items():
            for number in self._tree(self._gathered.roots[name], kinds):
                whole[name] &= number > 0 and self._take(number)
                looked += 1
                if looked % STEP == 0:
                    yield looked, self._pages.count
        for number in () if all(whole.values()) else self._others():
            self._take(number)
            if number % STEP == 0:
                yield number, self._pages.count
        self.sure = any(whole[name] for name in _NAMING) and not self._pages.log.doubtful
        self._gathered.settle()

    def count(self) -> int:
        """Count the messages whose rows are whole."""
        return self._shard.count()

    def oldest(self) -> float:
        """Give the birth of the oldest message."""
        found = self._shard.connection.execute("SELECT min(birth) FROM entry").get
        return math.inf if found is None else float(found)

    def finished(self) -> Iterator[tuple[str, float]]:
        """Give the ids of messages that have ended, and when they did."""
        return self._gathered.finished()

    def snapshots(self) -> Iterator[Snapshot]:
        """Give the messages in the order in which they were stored."""
        after, last = 0, self._shard.last()
        with told():
            while page := self._shard.after(after, last, STEP):
                yield from filter(None, map(self._snapshot, page))
                after = page[-1]

    def lose(self, snapshot: Snapshot, missing: str) -> None:
        """Count a snapshot among the losses."""
        self._gathered.lose(snapshot.entry.id, missing)

    def losses(self) -> Iterator[Loss]:
        """Give the messages of which something is lost."""
        return self._gathered.losses()

    def _tree(self, root: int, kinds: tuple[int, int]) -> Iterator[int]:
        """Give the pages of a table; 0 stands for one that cannot be read."""
        waiting = [root]
        while waiting:
            number = waiting.pop()
            if self._pages.kind(number) not in kinds or self._seen[number]:
                yield 0
                continue
            self._seen[number] = True
            waiting += reversed(self._pages.children(number))
            yield number

    def _others(self) -> Iterator[int]:
        """Give the pages that may have belonged to a tree that is broken."""
        for number in self._pages.free():
            if number < len(self._seen):
                self._seen[number] = True
        return (n for n in range(1, len(self._seen)) if not self._seen[n] and self._pages.kind(n))

    def _take(self, number: int) -> bool:
        """Gather the rows of a page; False when one of them is not whole."""
        known = sum(map(self._gathered.keep, self._pages.rows(number)))
        return known == self._pages.claimed(number)

    def _snapshot(self, seq: int) -> Snapshot | None:
        """Read one message; None when it is lost."""
        try:
            found = self._shard.snapshot(seq)
            missing = disk.unreadable(found.entry.message.body) if found else ""
        except (ValueError, TypeError, LookupError):
            found, missing = None, "its envelope"
        if missing:
            query = "SELECT id FROM entry WHERE seq = ?"
            self._gathered.lose(self._shard.connection.execute(query, (seq,)).get, missing)
            return None
        if found and all(one.state in ENDED for one in found.entry.recipients):
            return None  # those who wait for it are lost: that is told
        return found
