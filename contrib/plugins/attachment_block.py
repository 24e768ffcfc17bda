"""attachment_block: refuse messages with attachments of unwanted types; archives are not opened.

    attachment_block: {names: [.exe, .scr, .js, .vbs]}

More than 1,000 parts, 50 levels or 8 KiB of `Content-` fields in a part are refused as well.
Refusals are 554 5.7.1 with the reason `attachment` or `too_complex`.
"""

from __future__ import annotations

import asyncio
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING

from gateway import Plugin, Reject, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway import Message

PARTS, DEPTH, FIELDS = 1_000, 50, 8_192
UNWANTED = Reject("5.7.1", "attachments of this type are not accepted", reason="attachment")
COMPLEX = Reject("5.7.1", "this message has too many parts, or too large ones", reason="too_complex")


class Settings(Section):
    """What is unwanted."""

    #: Ends of the names of attachments, in any case.
    names: list[str] = [".bat", ".cmd", ".com", ".exe", ".js", ".lnk", ".pif", ".scr", ".vbs"]
    #: Media types in lower case, whatever the name is.
    types: list[str] = ["application/x-msdownload"]


class AttachmentBlock(Plugin[Settings]):
    """Looks at the header of every part, in a thread."""

    @hookimpl
    async def message(self, message: Message) -> Reject | None:
        """Refuse the message for its first unwanted part."""
        try:
            found = await asyncio.to_thread(self._find, message)
        except (HeaderParseError, LookupError, ValueError):
            return COMPLEX
        return UNWANTED if found else None

    def _find(self, message: Message) -> bool:
        ends, types = tuple(map(str.lower, self.settings.names)), self.settings.types
        # Windows drops dots and spaces at the end of a name.
        found = parts(lines(message.chunks()))
        return any(name.lower().rstrip(". ").endswith(ends) or kind in types for name, kind in found)


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut into lines without their ends; of a very long one only the beginning is kept."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest[:FIELDS] + chunk).split(b"\n")
        yield from whole
    yield rest


def parts(given: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Give (name, media type) of every part, the message itself first. Raises ValueError, LookupError."""
    boundaries: list[bytes] = []
    for count, fields in enumerate(headers(given, boundaries)):
        part = BytesHeaderParser().parsebytes(fields + b"\n")
        kind, boundary = part.get_content_type(), part.get_boundary()
        yield str(make_header(decode_header(part.get_filename() or ""))), kind
        if kind.startswith("multipart/") and boundary:
            boundaries.append(boundary.encode("utf-8", "surrogateescape"))
        if count >= PARTS or len(boundaries) >= DEPTH:
            raise ValueError("too many parts")


def headers(given: Iterable[bytes], boundaries: list[bytes]) -> Iterator[bytes]:
    """Give the `Content-` fields of the message and of each part; `boundaries` grow meanwhile."""
    fields, inside, keep = b"", True, False
    for line in given:
        mark = line[2:].rstrip(b" \t\r") if line.startswith(b"--") else b""
        if mark in boundaries:
            if inside:
                yield fields
            del boundaries[boundaries.index(mark) + 1 :]
            fields, inside = b"", True
        elif inside and line in (b"", b"\r"):
            yield fields
            # A message within a message begins with a header of its own.
            fields, inside = b"", b"message/" in fields.lower()
        elif inside:
            keep = keep if line[:1] in (b" ", b"\t") else line[:8].lower() == b"content-"
            fields += line + b"\n" if keep else b""
            if len(fields) > FIELDS:
                raise ValueError("too large a header")
    if inside:
        yield fields
