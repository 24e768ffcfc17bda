"""A message for a host that does not offer 8BITMIME (RFC 6152 section 3): its texts as quoted-printable.

A text with octets over 127 is encoded line by line, which says the same as it did; all else stays byte for
byte. 8-bit text without MIME gets the header that RFC 1428 section 3 has for it, since nobody can tell its
charset. What stands outside of all parts is read by nobody, so that `?` will do there.

Octets over 127 in a header stay: 8BITMIME allows none there either, so a host with it has no better right to
them, and to encode them would take a charset that nobody has named. What a signature covers (RFC 1847), and
parts that may have no encoding, cannot be converted. One by DKIM counts no more then (RFC 6376 section 5.3).
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from itertools import islice
from typing import TYPE_CHECKING

from gateway import FileBody, Message

from .mime import TooComplex, walk
from .parts import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .mime import Piece
    from .parts import Part

_OCTET = re.compile(rb"[\x80-\xff]")
_NO_OCTET = bytes.maketrans(bytes(range(128, 256)), b"?" * 128)
_ENCODING = "Content-Transfer-Encoding"


class Unconvertible(Exception):
    """The message cannot say the same in seven bits; the text is the reason."""


class SevenBit(Message):
    """A message whose bytes are converted as they are read."""

    __slots__ = ("_message", "_wanted")

    def __init__(self, message: Message, wanted: frozenset[int]) -> None:
        super().__init__(message.header, message.body)
        self._message = message
        self._wanted = wanted

    def chunks(self) -> Iterator[bytes]:
        """Give the message in pieces, converted."""
        return converted(self._message.chunks(), self._wanted)


def in_seven_bits(message: Message) -> Message:
    """Give the message as such a host takes it; that takes time. Raises Unconvertible, OSError."""
    body = islice(message.chunks(), 1, None)
    if all(map(bytes.isascii, body)):
        return message
    found = SevenBit(message, to_convert(message.chunks()))
    return found if isinstance(message.body, FileBody) else Message.parse(b"".join(found.chunks()))


def to_convert(chunks: Iterable[bytes]) -> frozenset[int]:
    """Number the parts that have octets over 127, and those that they are in. Raises Unconvertible."""
    wanted: set[int] = set()
    divided: set[int] = set()
    unread: set[int] = set()
    try:
        for kind, data, part in walk(chunks):
            divided |= {*part.within}
            if kind == "header" or data.isascii():
                continue
            if kind == "between":
                unread.add(part.number)
                continue
            if obstacle := _obstacle(part):
                raise Unconvertible(obstacle)
            wanted |= {part.number, *part.within}
    except TooComplex:
        raise Unconvertible("it has too many parts") from None
    if unread - divided:
        raise Unconvertible("its parts cannot be told apart")
    return frozenset(wanted)


def converted(chunks: Iterable[bytes], wanted: frozenset[int]) -> Iterator[bytes]:
    """Write the message with these parts encoded."""
    torn = False
    for piece in walk(chunks):
        if piece.kind == "text" and piece.part.number in wanted:
            yield _encoded(piece, torn=torn)
        elif piece.kind == "header" and piece.part.number in wanted:
            yield _header(piece)
        else:
            yield piece.data.translate(_NO_OCTET) if piece.kind == "between" else piece.data
        torn = piece.kind == "text" and not piece.data.endswith(b"\n")


def _obstacle(part: Part) -> str:
    """Say why a part must stay as it is; "" when it need not."""
    if part.type == "multipart/signed":
        return "a signature covers its 8-bit text"
    if not part.type:
        return "a header in it is in doubt"
    if part.type.startswith("multipart/"):
        return "its parts cannot be told apart"
    if part.type.startswith("message/") and not part.type.startswith("message/global"):
        return "a part with 8-bit text is of a type that takes no encoding"
    if part.encoding not in {*IDENTITY, "quoted-printable"}:
        return "an encoding of a part does not hold what it says"
    return ""


def _encoded(piece: Piece, *, torn: bool) -> bytes:
    """Encode some lines; behind a soft line break where they go on with one that was cut."""
    if piece.part.encoding == "quoted-printable":
        return _OCTET.sub(lambda octet: b"=%02X" % ord(octet[0]), piece.data)
    return (b"=\n" if torn else b"") + b2a_qp(piece.data)


def _header(piece: Piece) -> bytes:
    """Say in a header what its part is now, and leave the other fields as they are."""
    part, header = piece.part, Message(piece.part.header)
    if part.message and not header.values("MIME-Version"):
        header.append("MIME-Version", "1.0")
        if not header.values("Content-Type"):
            header.append("Content-Type", "text/plain; charset=unknown-8bit")
    if part.nests and part.encoding:
        header.remove(_ENCODING)
        header.append(_ENCODING, "7bit")
    elif not part.nests and part.encoding != "quoted-printable":
        header.remove(_ENCODING)
        header.append(_ENCODING, "quoted-printable")
    return header.header + piece.data[len(part.header) :]
