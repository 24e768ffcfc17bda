"""What SMTP looks like on the wire: command lines, the content after DATA or BDAT. Pure: no IO.

Only CRLF.CRLF ends a message and only CRLF ends a line (RFC 5321 section 2.3.8); any other reading
of a CR or LF lets one message hide another. How the bytes were cut into packets changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

END = b"\r\n.\r\n"
#: Header lines that begin so count as hops, in any case: qmail's prefix test (spec 3.6).
_HOPS = (b"\nreceived", b"\ndelivered")
_LONGEST_HOP = 9
#: `normalise` writes a space for what no line may hold.
_REPAIR = bytes.maketrans(b"\r\0", b"  ")


class BadLine(Enum):
    """Why a command line is none."""

    TOO_LONG = "line_too_long"
    MALFORMED = "malformed_line"


class CommandLines:
    """Cuts the bytes of a client into command lines, and stays in step after a bad one."""

    def __init__(self, limit: int) -> None:
        #: Longest line with its CRLF.
        self.limit = limit
        self._buffer = b""
        self._at = 0
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def take(self) -> bytes | BadLine | None:
        """Give the next line without its CRLF, or what is wrong with it; None when more bytes are needed."""
        start, end = self._at, self._buffer.find(b"\n", self._at)
        if end < 0:
            self._bound()
            return None
        self._at = end + 1
        if self._skipping or end + 1 - start > self.limit:
            self._skipping = False
            return BadLine.TOO_LONG
        line = self._buffer[start:end]
        if not line.endswith(b"\r") or b"\r" in line[:-1] or b"\0" in line:
            return BadLine.MALFORMED
        return line[:-1]

    def rest(self) -> bytes:
        """Give up what was not cut yet: behind DATA it is content."""
        rest = self._buffer[self._at :]
        self._buffer, self._at = b"", 0
        return rest

    def some(self, size: int) -> bytes:
        """Give up to `size` bytes of what was not cut yet: behind BDAT they are content."""
        start = self._at
        self._at = min(start + size, len(self._buffer))
        return self._buffer[start : self._at]

    def _bound(self) -> None:
        """Drop what is already too long, so that a line without an end holds no memory."""
        if len(self._buffer) - self._at > self.limit:
            self._skipping = True
        if self._skipping:
            self._buffer, self._at = b"", 0


class Text(ABC):
    """Turns content into text as the queue keeps it: line ends LF, octets and hops counted.

    A bare CR, a bare LF or a NUL makes it `malformed`, and from there on no text is given; with `normalise`
    a bare LF becomes a line end and the others a space.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        self._normalise = normalise
        self._line: bytes | None = b""
        self.malformed = False
        #: Octets of the content as RFC 1870 counts them: CRLF is two, stuffed dots are none.
        self.octets = 0
        self.hops = 0

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client and give text."""

    def finish(self) -> bytes:
        """Give what waited for more bytes, behind the last ones."""
        return b""

    def _convert(self, raw: bytes) -> bytes:
        """Convert a piece that splits no CRLF."""
        self.octets += len(raw)
        text = raw.replace(b"\r\n", b"\n")
        if text.count(b"\n") != len(raw) - len(text) or b"\r" in text or b"\0" in text:
            self.malformed = not self._normalise
            text = text.translate(_REPAIR)
        return text

    def _count_hops(self, text: bytes) -> None:
        """Look at the lines that are complete; `_line` is the begin of the next, None behind the header."""
        if self._line is None or not text:
            return
        text = b"\n" + self._line + text
        last = text.rfind(b"\n")
        end = text.find(b"\n\n")
        header = text[: end if end >= 0 else last].lower()
        self.hops += sum(header.count(mark) for mark in _HOPS)
        self._line = text[last + 1 :][:_LONGEST_HOP] if end < 0 else None


class Content(Text):
    """The content after DATA: dots are unstuffed, and CRLF.CRLF alone ends it."""

    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__(normalise=normalise)
        # The content starts at the start of a line: pretend that a CRLF came before it.
        self._carry = b"\r\n"
        self._first = True
        self.octets = -2
        self.ended = False
        #: What came behind the end: the next commands.
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Nothing may be fed once it has `ended`."""
        data = self._carry + data
        end = data.find(END)
        if end >= 0:
            self.ended = True
            self.rest = data[end + len(END) :]
            return self._content(data[: end + 2])
        keep = len(data) - _begun(data)
        self._carry = data[keep:]
        return self._content(data[:keep])

    def _content(self, raw: bytes) -> bytes:
        """Unstuff and convert a piece that splits no CRLF and no `CRLF.`."""
        text = self._convert(raw.replace(b"\r\n.", b"\r\n"))
        if self._first and text:
            self._first, text = False, text[1:]
        self._count_hops(text)
        return b"" if self.malformed else text


class Chunks(Text):
    """The content of BDAT commands (RFC 3030): lengths say where it ends, and no byte in it does.

    A chunk may end anywhere, within a CRLF too; the last one need not end a line. The rule for a bare CR or
    LF is that of DATA, since what is taken here may leave by DATA.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__(normalise=normalise)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """A CR at the end waits for what follows."""
        data = self._held + data
        self._held = data[-1:] if data.endswith(b"\r") else b""
        return self._text(data[: len(data) - len(self._held)])

    def finish(self) -> bytes:
        """Give a CR that nothing follows."""
        held, self._held = self._held, b""
        return self._text(held)

    def _text(self, raw: bytes) -> bytes:
        text = self._convert(raw)
        self._count_hops(text)
        return b"" if self.malformed else text


def _begun(data: bytes) -> int:
    """Count the bytes at the end of `data` that may be the begin of the end mark."""
    return next((n for n in range(len(END) - 1, 0, -1) if data.endswith(END[:n])), 0)
