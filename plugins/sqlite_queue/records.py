"""Numbers and rows as SQLite writes them into a page. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    #: The columns of one row.
    Values = tuple[Any, ...]

#: Kinds of values: integers of so many bytes, a float, two constants; from _BYTES on bytes and texts.
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_FLOAT = 7
_CONSTANTS = {8: 0, 9: 1}
_BYTES = 12
#: The longest form of a number; its last byte counts whole, of the others seven bits.
_LONGEST, _MORE = 9, 0x80


def u32(data: bytes, at: int) -> int:
    """Read a number of four bytes."""
    return int.from_bytes(data[at : at + 4], "big")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of one to nine bytes; gives it, and where it ends."""
    value = 0
    for count, byte in enumerate(data[at : at + _LONGEST], 1):
        if count == _LONGEST:
            return value << 8 | byte, at + count
        value = value << 7 | byte % _MORE
        if byte < _MORE:
            return value, at + count
    return 0, len(data)


def columns(content: bytes, size: int) -> Values:
    """Read the columns of a row, as many as are there; nothing when this is no row of `size` bytes."""
    head, at = varint(content, 0)
    kinds: list[int] = []
    while at < min(head, len(content)):
        kind, at = varint(content, at)
        kinds.append(kind)
    if at != head or head + sum(map(_length, kinds)) != size:
        return ()
    values: list[Any] = []
    for kind in kinds:
        piece, at = content[at : at + _length(kind)], at + _length(kind)
        if at > len(content):
            break
        try:
            values.append(_value(kind, piece))
        except UnicodeDecodeError:
            return ()
    return tuple(values)


def _length(kind: int) -> int:
    return _INTEGERS.get(kind, 8 if kind == _FLOAT else max(0, kind - _BYTES) // 2)


def _value(kind: int, piece: bytes) -> Any:
    if kind in _INTEGERS:
        return int.from_bytes(piece, "big", signed=True)
    if kind == _FLOAT:
        return struct.unpack(">d", piece)[0]
    if kind >= _BYTES:
        return piece.decode() if kind % 2 else piece
    return _CONSTANTS.get(kind)
