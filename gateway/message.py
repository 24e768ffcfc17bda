"""A message as bytes with LF line ends, and edits of its header that leave all other bytes alone."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import MessageTooBig, OutOfMemory
from gateway.faultpoint import point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

#: Bodies over this many bytes are files, never whole in memory.
IN_MEMORY = 256 * 1024
#: The header block is always in memory, so it has a bound of its own.
HEADER_LIMIT = 1024 * 1024
BLOCK = 64 * 1024

_FIELD = re.compile(rb"[^\n]*\n(?:[ \t][^\n]*\n)*|[^\n]+\Z")
_FOLD = re.compile(r"\r?\n(?=[ \t])")


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body on disk: everything behind the header block, from its empty line on."""

    path: Path
    size: int


class Message:
    """A header block in memory, and a body that is bytes or a file.

    The two joined are the message, byte for byte; the body starts with the empty line (it is
    empty when the message has no such line). Edits touch the header block only.
    """

    __slots__ = ("_edited", "_fields", "_header", "body")

    def __init__(self, header: bytes, body: bytes | FileBody = b"") -> None:
        self._header = header
        self._fields: list[bytes] | None = None
        self._edited = False
        self.body = body

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Split the bytes of a whole message (LF line ends) into header block and body."""
        end = header_end(raw)
        return cls(raw[:end], raw[end:])

    @property
    def header(self) -> bytes:
        """The header block: whole lines with LF, without the empty line."""
        if self._edited and self._fields is not None:
            self._header = b"".join(self._fields)
            self._edited = False
        return self._header

    @property
    def size(self) -> int:
        """Bytes of the whole message, line ends counted as one."""
        return len(self.header) + (self.body.size if isinstance(self.body, FileBody) else len(self.body))

    def __bytes__(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Give the message in pieces; a body on disk is never whole in memory."""
        yield self.header
        if isinstance(self.body, FileBody):
            with self.body.path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
        elif self.body:
            yield self.body

    def copy(self) -> Message:
        """Give a message whose edits do not touch this one; bytes are shared."""
        return Message(self.header, self.body)

    def adopt(self, edited: Message) -> None:
        """Take over the header and body of an edited copy."""
        self._header, self.body = edited.header, edited.body
        self._fields, self._edited = None, False

    def fields(self) -> list[tuple[str, str]]:
        """Give (name, value) of every header field in order, folding undone."""
        return [_split(field) for field in self._parsed() if b":" in field]

    def values(self, name: str) -> list[str]:
        """Give the values of every field of this name, in order."""
        wanted = name.lower()
        return [value for key, value in self.fields() if key.lower() == wanted]

    def prepend(self, name: str, value: str) -> None:
        """Put a field in front of all others, as trace fields go (RFC 5321 section 4.4)."""
        self._parsed().insert(0, field_bytes(name, value))
        self._edited = True

    def append(self, name: str, value: str) -> None:
        """Put a field behind all others."""
        fields = self._parsed()
        if fields and not fields[-1].endswith(b"\n"):
            fields[-1] += b"\n"
        fields.append(field_bytes(name, value))
        self._edited = True

    def remove(self, name: str) -> int:
        """Drop every field of this name; gives how many there were."""
        fields = self._parsed()
        wanted = name.lower().encode()
        kept = [field for field in fields if field.partition(b":")[0].strip().lower() != wanted]
        self._fields, self._edited = kept, True
        return len(fields) - len(kept)

    def _parsed(self) -> list[bytes]:
        if self._fields is None:
            self._fields = _FIELD.findall(self._header)
        return self._fields


def header_end(raw: bytes) -> int:
    """Find where the header block ends: at the empty line, or behind the last byte."""
    if raw.startswith(b"\n"):
        return 0
    found = raw.find(b"\n\n")
    return len(raw) if found < 0 else found + 1


def field_bytes(name: str, value: str) -> bytes:
    """Build one header field; a line end in `value` counts only as folding.

    Raises ValueError when name or value would make a second field.
    """
    if not re.fullmatch(r"[!-9;-~]+", name) or re.search(r"[\r\0]|\n(?![ \t])", value):
        raise ValueError(f"not one header field: {name}: {value!r}")
    return f"{name}: {value}\n".encode("utf-8", "surrogateescape")


def _split(field: bytes) -> tuple[str, str]:
    name, _, value = field.decode("utf-8", "surrogateescape").partition(":")
    return name.rstrip(), _FOLD.sub("", value).strip()


class Memory:
    """What all spools together may hold in memory."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._taken = 0

    def take(self, size: int) -> bool:
        """Take some, if there is so much."""
        if self._taken + size > self._limit():
            return False
        self._taken += size
        return True

    def give(self, size: int) -> None:
        """Give some back."""
        self._taken -= size


class Spool:
    """Takes the bytes of one message as they come, and gives a Message; memory stays bounded.

    Bodies over IN_MEMORY go to a file in `folder`, which must be on the store's file system; all do when
    `memory` has no room any more. What was taken of it goes back with `discard`.
    """

    def __init__(self, folder: Path, *, limit: int = 0, memory: Memory | None = None) -> None:
        self._folder = folder
        self._limit = limit
        self._memory = memory or Memory(lambda: sys.maxsize)
        self._taken = 0
        self._pieces: list[bytes] = []
        self._held = 0
        self._header: bytes | None = None
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add bytes (LF line ends).

        Raises MessageTooBig past the limit, OutOfMemory for a header that has no room, OSError when the disk
        refuses.
        """
        self.size += len(data)
        if self._limit and self.size > self._limit:
            raise MessageTooBig(f"the message is larger than {self._limit} bytes")
        if self._file is not None:
            point("spool.write")
            self._file.write(data)
            return
        self._pieces.append(data)
        self._held += len(data)
        room = self._memory.take(len(data))
        self._taken += len(data) * room
        if not room or self._held > IN_MEMORY:
            self._spill(room=room)

    def finish(self) -> Message:
        """Give the message; the file, if any, now belongs to it (and is not yet synced)."""
        if self._file is None or self._path is None:
            return Message.parse(b"".join(self._pieces))
        size = self._file.tell()
        self._file.close()
        point("spool.close")
        body = FileBody(self._path, size)
        self._file = self._path = None
        return Message(self._header or b"", body)

    def discard(self) -> None:
        """Drop what was written; safe to call at any time, also twice, and behind `finish`."""
        self._pieces = []
        self._memory.give(self._taken)
        self._taken = 0
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def _spill(self, *, room: bool) -> None:
        raw = b"".join(self._pieces)
        end = header_end(raw)
        if end == len(raw):
            if not room:
                raise OutOfMemory("the memory for messages on their way in is used up")
            if len(raw) > HEADER_LIMIT:
                raise MessageTooBig(f"the header is larger than {HEADER_LIMIT} bytes")
            self._pieces = [raw]
            return
        self._header = raw[:end]
        point("spool.create")
        number, name = tempfile.mkstemp(prefix="body-", dir=self._folder)
        self._path = type(self._folder)(name)
        self._file = os.fdopen(number, "wb", buffering=BLOCK)
        self._file.write(raw[end:])
        self._pieces = []
        freed = max(0, self._taken - end)
        self._memory.give(freed)
        self._taken -= freed
