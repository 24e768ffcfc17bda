"""An SQLite file page by page, its log laid over it, as far as it can be read; it is never written to.

The form is that of https://www.sqlite.org/fileformat2.html. SQLite itself reads nothing below a page that is
damaged, and nothing at all when that is the first.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .log import PAGE, Log, log_of
from .records import columns, u32, varint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .records import Values

#: Kinds of pages. Those that only lead to others hold rows, too, where a table is an index.
INNER_INDEX, INNER_TABLE, LEAF_INDEX, LEAF_TABLE = 2, 5, 10, 13
INDEX, TABLE = (INNER_INDEX, LEAF_INDEX), (INNER_TABLE, LEAF_TABLE)
#: No row is longer: a header, a body that is no file, and what plugins keep.
LONGEST = 16 * 1024 * 1024
_FIRST = 100
_MAGIC = b"SQLite format 3\0"


class Row(NamedTuple):
    """One row, or as much of its columns as can be read."""

    rowid: int
    values: Values
    whole: bool


class Pages:
    """The pages of one file."""

    def __init__(self, path: Path) -> None:
        self.log = Log(log_of(path))
        self._file = path.open("rb")
        self._over = log_of(path).open("rb") if self.log.places else self._file
        first = _read(self._file, 0, _FIRST)
        said = int.from_bytes(first[16:18], "big")
        named = first.startswith(_MAGIC) and said in (1, *(2**n for n in range(9, 16)))
        own = (65536 if said == 1 else said) if named else PAGE
        self.size = self.log.page_size if self.log.places else own
        #: Of the schema; 0 when it cannot be read.
        self.version = 0
        self.count = max(self._file.seek(0, 2) // self.size, max(self.log.places, default=0))
        if (first := self.page(1)).startswith(_MAGIC):
            self.version = u32(first, 60)

    def close(self) -> None:
        """Let go of the files."""
        self._over.close()
        self._file.close()

    def page(self, number: int) -> bytes:
        """Give a page; nothing when there is none."""
        if not 0 < number <= self.count:
            return b""
        file, place = self._file, (number - 1) * self.size
        if number in self.log.places:
            file, place = self._over, self.log.places[number]
        found = _read(file, place, self.size)
        return found if len(found) == self.size else b""

    def kind(self, number: int) -> int:
        """Give the kind of a page; 0 when it is none of a table."""
        page = self.page(number)
        found = page[_start(number)] if page else 0
        return found if found in (*INDEX, *TABLE) else 0

    def children(self, number: int) -> list[int]:
        """Give the pages that a page leads to."""
        page, start = self.page(number), _start(number)
        if page[start] not in (INNER_INDEX, INNER_TABLE):
            return []
        return [*(u32(page, at) for at in _cells(page, start)), u32(page, start + 8)]

    def claimed(self, number: int) -> int:
        """Give how many rows a page says that it has."""
        page, start = self.page(number), _start(number)
        return 0 if page[start] == INNER_TABLE else int.from_bytes(page[start + 3 : start + 5], "big")

    def rows(self, number: int) -> Iterator[Row]:
        """Give the rows on a page; what has not the form of one is left out."""
        page, start = self.page(number), _start(number)
        kind = page[start]
        for at in _cells(page, start) if kind != INNER_TABLE else []:
            size, place = varint(page, at + 4 * (kind == INNER_INDEX))
            rowid, place = varint(page, place) if kind == LEAF_TABLE else (0, place)
            content = self._content(page, place, size, kind) if size <= LONGEST else b""
            if values := columns(content, size):
                yield Row(rowid, values, len(content) == size)

    def free(self) -> Iterator[int]:
        """Give the pages that are said to hold nothing any more; they still hold what was in them."""
        page = self.page(1)
        trunk, seen = (u32(page, 32) if page.startswith(_MAGIC) else 0), set[int]()
        while trunk not in seen and (page := self.page(trunk)):
            seen.add(trunk)
            yield trunk
            count = min(u32(page, 4), self.size // 4 - 2)
            yield from struct.unpack_from(f">{count}I", page, 8)
            trunk = u32(page, 0)

    def _content(self, page: bytes, at: int, size: int, kind: int) -> bytes:
        """Give what a row holds, over all its pages; it is shorter when one of them cannot be read."""
        least = (self.size - 12) * 32 // 255 - 23
        most = self.size - 35 if kind == LEAF_TABLE else (self.size - 12) * 64 // 255 - 23
        if size <= most:
            return page[at : at + size]
        local = least + (size - least) % (self.size - 4)
        local = local if local <= most else least
        found, left, following = [page[at : at + local]], size - local, u32(page, at + local)
        while left > 0 and any(page := self.page(following)):
            following, taken = u32(page, 0), min(left, self.size - 4)
            left -= taken
            # The last leads nowhere, and only the last.
            if bool(following) == (left == 0):
                break
            found.append(page[4 : 4 + taken])
        return b"".join(found)


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    try:
        return file.read(size)
    except OSError:  # the disk cannot read it
        return b""


def _start(number: int) -> int:
    return _FIRST if number == 1 else 0


def _cells(page: bytes, start: int) -> list[int]:
    """Give where the rows of a page begin."""
    head = start + (12 if page[start] in (INNER_INDEX, INNER_TABLE) else 8)
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    first = head + 2 * count
    if first > len(page):
        return []
    return [at for at in struct.unpack_from(f">{count}H", page, head) if first <= at <= len(page) - 4]
