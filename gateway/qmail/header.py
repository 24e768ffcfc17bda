"""Reads the header of a message as qmail-inject does: what is no field ends it (qmail spec 8.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")


def read_header(file: BinaryIO) -> tuple[list[bytes], bytes]:
    """Give the fields with their line ends, and the first bytes of the body; the file stands behind them."""
    fields: list[bytes] = []
    while line := file.readline():
        line += b"" if line.endswith(b"\n") else b"\n"
        if fields and line[:1] in b" \t":
            fields[-1] += line
        elif line.startswith(b"From "):
            fields.append(b"MBOX-Line: " + line)
        elif line == b"\n":
            return fields, line
        elif _FIELD.match(line):
            fields.append(line)
        else:
            return fields, b"\n" + line
    return fields, b""


def name_of(field: bytes) -> str:
    """Give the name of a field in lower case."""
    found = _FIELD.match(field)
    return found[1].decode().lower() if found else ""
