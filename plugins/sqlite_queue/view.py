"""A shard read beside its owner, by short transactions: what a backup sees."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.queue import Snapshot, View

from . import disk
from .shard import Shard
from .writer import translated

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

#: Entries whose turn is looked up at a time.
PAGE = 500


class ShardView(View):
    """The shard in a folder, read only."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        with told():
            self._shard = Shard(disk.read_only(folder / "queue.db"), folder / "bodies")

    def close(self) -> None:
        """Let go of the file."""
        self._shard.connection.close()

    def count(self) -> int:
        """Count the entries."""
        with told():
            return self._shard.count()

    def known(self, ids: Collection[str], since: float) -> set[str]:
        """Give those of the ids that are here, or were finished since a time."""
        with told():
            return self._shard.known(ids, since)

    def snapshots(self) -> Iterator[Snapshot]:
        """Give the entries in the order in which they were stored.

        What is born stands behind its parent in this order, even where a clock was set back. Of what is
        stored after the start only what was born here is given, so that this ends however much comes in.
        """
        with told():
            last, after = self._shard.last(), 0
        while page := self._page(after, last):
            for seq in page:
                with told():
                    found = self._shard.snapshot(seq)
                if found:
                    yield found
            after = page[-1]

    def _page(self, after: int, last: int) -> list[int]:
        with told():
            return self._shard.after(after, last, PAGE)


@contextmanager
def told() -> Iterator[None]:
    """Raise the queue's own exception for one of SQLite's."""
    try:
        yield
    except Exception as error:
        raise translated(error) from error
