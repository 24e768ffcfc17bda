"""What SMTP looks like on the wire: command lines, and the content after DATA. Pure: no IO.

Only CRLF.CRLF ends a message and only CRLF ends a line (RFC 5321 section 2.3.8); any other reading
of a CR or LF lets one message hide another. How the bytes were cut into packets changes nothing.
"""

from __future__ import annotations

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
        self._limit = limit
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
        if self._skipping or end + 1 - start > self._limit:
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

    def _bound(self) -> None:
        """Drop what is already too long, so that a line without an end holds no memory."""
        if len(self._buffer) - self._at > self._limit:
            self._skipping = True
        if self._skipping:
            self._buffer, self._at = b"", 0


class Content:
    """Reads the content after DATA in blocks: dots unstuffed, line ends LF, hops counted.

    A bare CR, a bare LF or a NUL makes it `malformed`, and from there on no content is given; with
    `normalise` a bare LF becomes a line end and the others a space. Neither ever ends the message.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        self._normalise = normalise
        # The content starts at the start of a line: pretend that a CRLF came before it.
        self._carry = b"\r\n"
        self._first = True
        self._line: bytes | None = b""
        self.ended = False
        self.malformed = False
        #: Octets of the content as RFC 1870 counts them: CRLF is two, stuffed dots are none.
        self.octets = -2
        self.hops = 0
        #: What came behind the end: the next commands.
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client and give content; nothing may be fed once it has `ended`."""
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
        raw = raw.replace(b"\r\n.", b"\r\n")
        self.octets += len(raw)
        text = raw.replace(b"\r\n", b"\n")
        if text.count(b"\n") != len(raw) - len(text) or b"\r" in text or b"\0" in text:
            self.malformed = not self._normalise
            text = text.translate(_REPAIR)
        if self._first and text:
            self._first, text = False, text[1:]
        if self._line is not None and text:
            self._count_hops(text)
        return b"" if self.malformed else text

    def _count_hops(self, text: bytes) -> None:
        """Look at the lines that are complete; `_line` is the begin of the next, None behind the header."""
        text = b"\n" + (self._line or b"") + text
        last = text.rfind(b"\n")
        end = text.find(b"\n\n")
        header = text[: end if end >= 0 else last].lower()
        self.hops += sum(header.count(mark) for mark in _HOPS)
        self._line = text[last + 1 :][:_LONGEST_HOP] if end < 0 else None


def _begun(data: bytes) -> int:
    """Count the bytes at the end of `data` that may be the begin of the end mark."""
    return next((n for n in range(len(END) - 1, 0, -1) if data.endswith(END[:n])), 0)
