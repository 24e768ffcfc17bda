"""The write-ahead log beside an SQLite file, read frame by frame, also where it is damaged.

SQLite takes a log to end at the first frame that is not whole: it cannot tell damage from a commit that a
power cut has torn. But a transaction begins only when the one before is on stable storage. So what stands
whole behind a later commit shows that the hole before it was once stored, and with it mail that had its 250.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

    Sum = tuple[int, int]

#: The size of a page where nothing readable names another.
PAGE = 4096
#: What a log begins with -> the byte order of its checksums.
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
_NATIVE = "<" if sys.byteorder == "little" else ">"
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")


def log_of(path: Path) -> Path:
    """Name the log of an SQLite file."""
    return path.with_name(f"{path.name}-wal")


class Log:
    """What a log holds; nothing when there is none."""

    def __init__(self, path: Path) -> None:
        #: Number of a page -> where its newest content stands in the log.
        self.places: dict[int, int] = {}
        #: Pages of the whole file after the last commit.
        self.pages = 0
        self.page_size = PAGE
        #: Something that was committed cannot be read.
        self.damaged = False
        #: Something may have been committed that cannot be read.
        self.doubtful = False
        self._gap = False
        if path.exists():
            with path.open("rb") as file:
                try:
                    self._read(file)
                except OSError:  # the disk cannot read it
                    self.damaged = True
        self.doubtful |= self.damaged

    def _read(self, file: BinaryIO) -> None:
        raw = file.read(_HEADER.size).ljust(_HEADER.size, b"\0")
        magic, _, size, _, *salts, one, two = _HEADER.unpack(raw)
        order = _MAGIC.get(magic, _NATIVE)
        if sound := magic in _MAGIC and _sum(order, raw[:24], (0, 0)) == (one, two):
            self.page_size = size
        self._gap = not sound
        # Of old frames, which this log has not come to yet, the salts are others.
        live = tuple(salts) if sound else None
        before, waiting, ended, place = (one, two), dict[int, int](), False, _HEADER.size
        last = (0, 0)
        while len(block := file.read(_FRAME.size + self.page_size)) == _FRAME.size + self.page_size:
            number, commit, salt, pepper, *said = _FRAME.unpack_from(block)
            whole = number > 0 and live in (None, (salt, pepper)) and _chained(order, block, before, said)
            if whole:
                if live is None and place == _HEADER.size + len(block):
                    # Without a header nothing vouches for the first frame but that the second follows it.
                    waiting[last[0]] = last[1]
                live = (salt, pepper)
                self.damaged |= self._gap and (ended or not sound)
                waiting[number] = place + _FRAME.size
            self._gap |= not whole
            self.doubtful |= not whole and live in (None, (salt, pepper))
            if ended := whole and commit > 0:
                self.places.update(waiting)
                self.pages = commit
                waiting.clear()
            last = (number, place + _FRAME.size)
            before, place = (said[0], said[1]), place + len(block)


def _chained(order: str, block: bytes, before: Sum, said: list[int]) -> bool:
    """Tell whether a frame is what was written behind the one whose checksum is `before`."""
    return _sum(order, block[_FRAME.size :], _sum(order, block[:8], before)) == tuple(said)


def _sum(order: str, data: bytes, seed: Sum) -> Sum:
    """Give SQLite's checksum of a log: two sums of 32 bits that run through all of it."""
    one, two = seed
    for first, second in struct.iter_unpack(f"{order}II", data):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
