"""Makes a cdb, as qmail-newmrh, qmail-newu and tcprules do."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD = 2048


def make_cdb(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write (key, value) pairs in this order; the layout is described in `gateway/controls/cdb.py`."""
    body = bytearray()
    tables: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, value in records:
        hashed = _hash(key)
        tables[hashed % 256].append((hashed, _HEAD + len(body)))
        body += struct.pack("<LL", len(key), len(value)) + key + value
    head = bytearray()
    for table in tables:
        slots = [(0, 0)] * (2 * len(table))
        head += struct.pack("<LL", _HEAD + len(body), len(slots))
        for hashed, position in table:
            at = hashed // 256 % len(slots)
            while slots[at][1]:
                at = (at + 1) % len(slots)
            slots[at] = hashed, position
        body += b"".join(struct.pack("<LL", *slot) for slot in slots)
    return bytes(head + body)


def _hash(key: bytes) -> int:
    value = 5381
    for byte in key:
        value = (value * 33 % 2**32) ^ byte
    return value
