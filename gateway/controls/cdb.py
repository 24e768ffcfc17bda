"""cdb: the constant database that qmail's tools compile lists into. Pure: no IO.

A file is 256 pointers (position and slots of a hash table), the records (two lengths, key, value) in the
order in which they were added, and the tables (hash and position of a record). All numbers have 32 bits,
the lowest byte first. The first record of a key counts.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Pointers at the head of a file, and their size in bytes.
TABLES, HEAD = 256, 2048

_PAIR = struct.Struct("<LL")


def is_cdb(data: bytes) -> bool:
    """Tell a cdb from a text: its pointers hold NUL bytes, which no list of qmail does."""
    return len(data) >= HEAD and b"\0" in data[:HEAD]


class Cdb:
    """A whole file in memory; every length and position in it is checked before it is used."""

    def __init__(self, data: bytes) -> None:
        """Check the pointers. Raises ValueError when this is no cdb, or not all of one."""
        if len(data) < HEAD:
            raise ValueError("no cdb, or not all of it")
        self._data = data
        self._tables = [_PAIR.unpack_from(data, 8 * number) for number in range(TABLES)]
        #: Records end where the first table begins.
        self._end = min(position for position, _ in self._tables)
        if self._end < HEAD or any(at + 8 * slots > len(data) for at, slots in self._tables):
            raise ValueError("no cdb, or not all of it")

    def get(self, key: bytes) -> bytes | None:
        """Give the value of a key. Raises ValueError when the file is damaged where it would be."""
        wanted = _hash(key)
        start, slots = self._tables[wanted % TABLES]
        for step in range(slots):
            slot = (wanted // TABLES + step) % slots
            found, position = _PAIR.unpack_from(self._data, start + 8 * slot)
            if not position:
                return None
            if found == wanted:
                name, value = self._record(position)[:2]
                if name == key:
                    return value
        return None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Give every record in the order in which it was added. Raises ValueError when one is damaged."""
        position = HEAD
        while position < self._end:
            key, value, position = self._record(position)
            yield key, value

    def _record(self, position: int) -> tuple[bytes, bytes, int]:
        """Give key and value of the record here, and where the next one begins."""
        if not HEAD <= position <= self._end - 8:
            raise ValueError("a record outside of the cdb")
        key_length, length = _PAIR.unpack_from(self._data, position)
        start = position + 8
        middle, end = start + key_length, start + key_length + length
        if end > self._end:
            raise ValueError("a record outside of the cdb")
        return self._data[start:middle], self._data[middle:end], end


def _hash(key: bytes) -> int:
    value = 5381
    for byte in key:
        value = ((value << 5) + value & 0xFFFFFFFF) ^ byte
    return value
