"""The parts of a MIME message (RFC 2045, RFC 2046), piece by piece as it is read. Pure: no IO.

Nothing is decoded and nothing is lost: the pieces joined are the message, its line ends all LF.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from .parts import read_part

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from .parts import Part

#: Parts of one message, and how deep they may nest; bytes of a header, and of a line that is kept whole.
MOST, DEEPEST = 1000, 20
HEADER, LONGEST = 1024 * 1024, 64 * 1024

_LINE_END = re.compile(rb"\r\n?")
_MARK = re.compile(rb"^--", re.MULTILINE)


class TooComplex(ValueError):
    """It has more parts than anybody would write."""


class Piece(NamedTuple):
    """Some bytes of a message: a header with its empty line, text, or what divides parts.

    `between` is also what stands before the first part and behind the last: nobody reads it.
    """

    kind: Literal["header", "text", "between"]
    data: bytes
    part: Part


def walk(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Give the pieces of a message, in order. Raises TooComplex."""
    walker, fresh = _Walker(), True
    for lines in _whole_lines(chunks):
        yield from walker.pieces(lines, fresh=fresh)
        fresh = lines.endswith(b"\n")
    if walker.header is not None:
        yield walker.behind_header(b"")


@dataclass(slots=True)
class _Walker:
    """Where in a message we are."""

    #: The parts that are open, outermost first: what comes belongs to the last.
    open: list[Part] = field(default_factory=list)
    #: The lines so far of the header that we are in; None behind it.
    header: list[bytes] | None = field(default_factory=list)
    kind: Literal["text", "between"] = "text"
    #: A line that divides -> how many parts stay open, and whether another one begins.
    marks: dict[bytes, tuple[int, bool]] = field(default_factory=dict)
    #: Parts so far, and bytes of the header that we are in.
    count: int = 0
    size: int = 0

    def pieces(self, lines: bytes, *, fresh: bool) -> Iterator[Piece]:
        """Take some lines; the first is the rest of a long one when it is not `fresh`."""
        at = 0
        while at < len(lines):
            begins = fresh or at > 0
            at = yield from (self._text if self.header is None else self._line)(lines, at, begins)

    def behind_header(self, empty: bytes) -> Piece:
        """Read what the header says; `empty` is its empty line, b"" when it has none."""
        header = b"".join(self.header or ())
        part = read_part(self.count, header, self.open)
        self.open.append(part)
        self.count, self.size = self.count + 1, 0
        if self.count > MOST or len(self.open) > DEEPEST:
            raise TooComplex
        self.kind = "between" if part.nests and part.boundary else "text"
        self.header = [] if part.nests and not part.boundary and empty else None
        self._note_marks()
        return Piece("header", header + empty, part)

    def _line(self, lines: bytes, at: int, begins: bool) -> Generator[Piece, None, int]:
        end = lines.find(b"\n", at) + 1 or len(lines)
        line = lines[at:end]
        if begins and line == b"\n":
            yield self.behind_header(line)
        elif begins and self._divides(line):
            yield self.behind_header(b"")
            yield self._between(line)
        elif self.header is not None:
            self.header.append(line)
            self.size += len(line)
            if self.size > HEADER:
                raise TooComplex
        return end

    def _text(self, lines: bytes, at: int, begins: bool) -> Generator[Piece, None, int]:
        for match in _MARK.finditer(lines, at) if self.marks else ():
            start = match.start()
            end = lines.find(b"\n", start) + 1 or len(lines)
            if (start or begins) and self._divides(lines[start:end]):
                if start > at:
                    yield Piece(self.kind, lines[at:start], self.open[-1])
                yield self._between(lines[start:end])
                return end
        yield Piece(self.kind, lines[at:], self.open[-1])
        return len(lines)

    def _divides(self, line: bytes) -> bool:
        return line.rstrip(b" \t\n") in self.marks

    def _between(self, line: bytes) -> Piece:
        """Close what this line closes."""
        kept, another = self.marks[line.rstrip(b" \t\n")]
        del self.open[kept:]
        self.header, self.kind = ([] if another else None), "between"
        self._note_marks()
        return Piece("between", line, self.open[-1])

    def _note_marks(self) -> None:
        """Note the lines that divide; where two parts have the same, it is the outer one's."""
        self.marks = {}
        for kept, part in reversed(list(enumerate(self.open, 1))):
            if part.nests and part.boundary:
                self.marks[b"--" + part.boundary + b"--"] = kept, False
                self.marks[b"--" + part.boundary] = kept, True


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut bytes behind line ends, and make these LF, as on the wire; a long line is cut anywhere."""
    held = b""
    for chunk in chunks:
        data = held + chunk
        end = data.rfind(b"\n") + 1
        if not end and len(data) > LONGEST:
            # A CR at the end may be half of a CRLF.
            end = len(data) - data.endswith(b"\r")
        held = data[end:]
        if end:
            yield _LINE_END.sub(b"\n", data[:end])
    if held:
        yield _LINE_END.sub(b"\n", held)
