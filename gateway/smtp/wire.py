"""What travels between an SMTP client and a server, as the client reads and writes it. Pure: no IO."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import DialogueError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Bytes of replies that may wait unread: 100 answers of 512 octets, and more.
UNREAD = 128 * 1024
#: Characters of a reply that are kept for events and bounces (qmail spec 7.5).
KEPT = 5000

_LINE = re.compile(rb"([2-9]\d\d)(?:([ -])([^\n]*))?")
_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
_LINE_END = re.compile(rb"\r\n?")


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """What the other host answered: its code, and the text of each line."""

    code: int
    lines: tuple[str, ...]
    #: Lines had different codes (RFC 5321 section 4.2.1 forbids that); `code` is the first one's.
    mixed: bool = False

    def __str__(self) -> str:
        return f"{self.code} " + "\n".join(self.lines)[:KEPT]

    @property
    def status(self) -> str:
        """The enhanced status that fits the code's class, or the class's unknown one."""
        found = _STATUS.match(self.lines[0])
        if found and found[1][0] == str(self.code)[0]:
            return found[1]
        return f"{min(self.code // 100, 5)}.0.0"


class ReplyReader:
    """Makes replies of the bytes that come; what waits unread is bounded."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []
        self._code = 0
        self._mixed = False
        self._replies: deque[RemoteReply] = deque()
        self._unread = 0

    @property
    def empty(self) -> bool:
        """Nothing has come that was not taken, not even a part of a line."""
        return not (self._replies or self._lines or self._buffer)

    @property
    def replies(self) -> int:
        """How many whole replies wait."""
        return len(self._replies)

    def feed(self, data: bytes) -> None:
        """Take bytes as they come. Raises DialogueError when they are no SMTP, or too many."""
        self._unread += len(data)
        if self._unread > UNREAD:
            raise DialogueError("its reply is too long", "4.5.0")
        self._buffer += data
        if b"\n" in data:
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._take(line.rstrip(b"\r"))

    def next(self) -> RemoteReply | None:
        """Give the oldest reply that was not taken yet."""
        if not self._replies:
            return None
        if len(self._replies) == 1 and not self._lines:
            self._unread = len(self._buffer)
        return self._replies.popleft()

    def _take(self, line: bytes) -> None:
        match = _LINE.fullmatch(line)
        if not match:
            raise DialogueError("its reply is no SMTP", "4.5.0", _printable(line)[:KEPT])
        if not self._lines:
            self._code, self._mixed = int(match[1]), False
        self._mixed = self._mixed or int(match[1]) != self._code
        self._lines.append(_printable(match[3] or b""))
        if match[2] != b"-":
            self._replies.append(RemoteReply(self._code, tuple(self._lines), self._mixed))
            self._lines = []


def encode_content(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Write a message as it travels behind DATA, final dot and all.

    Line ends are made one kind first (a CR alone is one, too) and dots doubled after that, so that no
    content can end itself (qmail spec 7.6). A last line without an end gets one.
    """
    at_start, held = True, b""
    for chunk in chunks:
        # A CR at the end may be half of a CRLF.
        data = held + chunk
        held = b"\r" if data.endswith(b"\r") else b""
        data = data[: len(data) - len(held)]
        if not data:
            continue
        if b"\r" in data:
            data = _LINE_END.sub(b"\n", data)
        stuffed = (b"." if at_start and data.startswith(b".") else b"") + data.replace(b"\n.", b"\n..")
        at_start = data.endswith(b"\n")
        yield stuffed.replace(b"\n", b"\r\n")
    yield (b"" if at_start and not held else b"\r\n") + b".\r\n"


def _printable(line: bytes) -> str:
    return _CONTROLS.sub(" ", line.decode("utf-8", "replace")).rstrip()
