"""What the header of a message, or of one of its parts, says of it (RFC 2045). Pure: no IO."""

from __future__ import annotations

import email.message
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Encodings that leave octets as they are.
IDENTITY = frozenset({"", "7bit", "8bit", "binary"})
#: Octets that a Content-Type may have: to read one takes the square of it. No line of mail may be longer.
_LONGEST_TYPE = 998
#: Fields, and an mbox's mark; any other line is to some readers the begin of the text.
_FIELDS = re.compile(rb"(?:>?From [^\n]*\n)?(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z))*")


@dataclass(frozen=True, slots=True)
class Part:
    """A message, or a part of one: what its header says."""

    number: int
    header: bytes
    #: It is a message: the whole, or one that a part holds.
    message: bool
    #: "text/plain"; "" when it names two or an endless one, or readers differ on where the header ends.
    type: str
    #: Content-Transfer-Encoding; "" when it names none.
    encoding: str
    #: What divides its parts; b"" when nothing does.
    boundary: bytes
    #: Numbers of the parts that it is in.
    within: tuple[int, ...]

    @property
    def nests(self) -> bool:
        """It is made of parts, or of a message; what a signature covers is left whole (RFC 1847)."""
        inner = self.type == "message/rfc822" or bool(self.boundary)
        return inner and self.type != "multipart/signed" and self.encoding in IDENTITY


def read_part(number: int, header: bytes, above: Sequence[Part]) -> Part:
    """Read a header; `above` are the parts that it is in, outermost first."""
    fields = Message(header)
    outer = above[-1] if above else None
    said = email.message.Message()
    said.set_default_type("message/rfc822" if outer and outer.type == "multipart/digest" else "text/plain")
    types = fields.values("Content-Type")
    one = len(types) < 2 and sum(map(len, types)) <= _LONGEST_TYPE  # noqa: PLR2004
    clear = one and _FIELDS.fullmatch(header)
    if clear and types:
        said["Content-Type"] = types[0]
    kind = said.get_content_type() if clear else ""
    boundary = str(said.get_boundary("")) if kind.startswith("multipart/") else ""
    return Part(
        number,
        header,
        outer is None or (outer.nests and not outer.boundary),
        kind,
        "".join(fields.values("Content-Transfer-Encoding")).lower(),
        boundary.encode() if boundary.isascii() else b"",
        tuple(part.number for part in above),
    )
