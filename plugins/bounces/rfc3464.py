"""A delivery status notification: multipart/report (RFC 6522) with message/delivery-status (RFC 3464)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from email.message import MIMEPart
from email.utils import formatdate
from typing import TYPE_CHECKING

from .lines import decoded_xtext, one_line
from .shown import CONTROLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway import Entry

    from .lines import Line

#: Bytes of the original that are outside of ASCII need 8BITMIME, and the parts around them to say so.
_EIGHT = "Content-Transfer-Encoding: 8bit\n"
#: What is said to people of each action.
_WORDS = {
    "failed": "could not be delivered to:",
    "delayed": "has not been delivered yet to the recipients below; delivery will be tried again for",
    "delivered": "was delivered to:",
    "relayed": "was passed on to a host that gives no reports, for:",
    "expanded": "was delivered, and passed on from there to other addresses, for:",
}


@dataclass(frozen=True, slots=True)
class Report:
    """One such notification."""

    host: str
    entry: Entry
    lines: Sequence[Line]
    now: float
    #: It tells of a bounce that could not be delivered.
    double: bool
    #: The whole original comes back, not its header alone.
    whole: bool
    #: Nobody can guess it, so no original holds it.
    boundary: str = field(default_factory=lambda: f"report-{secrets.token_hex(16)}")

    def fields(self) -> dict[str, str]:
        """Give the header fields that this format adds."""
        fields = {
            "Message-ID": f"<{secrets.token_hex(16)}@{self.host}>",
            "Auto-Submitted": "auto-replied",
            "MIME-Version": "1.0",
            "Content-Type": f'multipart/report; report-type=delivery-status;\n\tboundary="{self.boundary}"',
        }
        return fields if self._original().isascii() else fields | {"Content-Transfer-Encoding": "8bit"}

    def body(self) -> bytes:
        """Write the three parts: for people, for programs, and the original."""
        mark = f"--{self.boundary}".encode()
        parts = [self._for_people(), self._for_programs(), self._returned()]
        return b"".join(b"\n" + mark + b"\n" + part for part in parts) + b"\n" + mark + b"--\n"

    def _for_people(self) -> bytes:
        what = "A bounce" if self.double else "Your message"
        lines = [f"This is the mail gateway at {self.host}.", ""]
        for action, words in _WORDS.items():
            some = [line for line in self.lines if line.action == action]
            if some:
                until = f" until {formatdate(some[0].until)}:" if action == "delayed" else ""
                lines += [f"{what} {words}{until}", ""]
            for line in some:
                lines += [f"<{CONTROLS.sub('_', line.final)}>:", *_lines(line.text), ""]
        text = "\n".join(lines).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        part = MIMEPart()
        part.set_content(text, charset="utf-8", cte=None if text.isascii() else "quoted-printable")
        return part.as_bytes()

    def _for_programs(self) -> bytes:
        groups = [
            "\n".join(self._per_message()),
            *("\n".join(line.fields(self.now)) for line in self.lines),
        ]
        return ("Content-Type: message/delivery-status\n\n" + "\n\n".join(groups) + "\n").encode("ascii")

    def _per_message(self) -> Iterator[str]:
        if envelope_id := self.entry.params.get("ENVID"):
            yield f"Original-Envelope-Id: {one_line(decoded_xtext(envelope_id))}"
        yield f"Reporting-MTA: dns; {one_line(self.host)}"
        yield f"Arrival-Date: {formatdate(self.entry.birth)}"

    def _returned(self) -> bytes:
        original = self._original()
        kind = "message/rfc822" if self.whole else "text/rfc822-headers"
        head = f"Content-Type: {kind}\n{'' if original.isascii() else _EIGHT}\n"
        return head.encode("ascii") + original

    def _original(self) -> bytes:
        message = self.entry.message
        return bytes(message) if self.whole else message.header


def _lines(text: str) -> list[str]:
    return [CONTROLS.sub("", line) for line in text.split("\n") if line]
