"""A delivery status notification: multipart/report (RFC 6522) with message/delivery-status (RFC 3464)."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from email.message import MIMEPart
from email.utils import formatdate
from typing import TYPE_CHECKING

from gateway import Address

from .shown import CONTROLS, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway import Entry, Failure, Notice, Recipient

#: A line of a header may have 998 characters (RFC 5322 section 2.1.1); a reply may be longer.
_LONGEST = 900
#: What stands raw in an address of the type utf-8 (RFC 6533 section 3); the rest is `\x{...}`.
_NOT_RAW = re.compile(r"[^!-*,-<>-\[\]-~]")
#: How `remote` begins and ends what it says of a host that was spoken to.
_PEER = re.compile(r"^(\S+)\[[0-9A-Fa-f.:]+\]:\d+: ", re.MULTILINE)
_SAID = re.compile(r"^The host said: (.*(?:\n\d{3}[ -].*)*)", re.MULTILINE)
_HEX = re.compile(r"\+([0-9A-F]{2})")
_STATUS = re.compile(r"[245](?:\.(?:0|[1-9]\d{0,2})){2}")
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
class Line:
    """What is told of one recipient."""

    recipient: Recipient
    #: The address under which the sender knows it.
    final: str
    action: str
    status: str
    text: str
    until: float = 0.0


def failed(failure: Failure) -> Line:
    """Tell of a failure."""
    return Line(failure.recipient, shown(failure), "failed", _status(failure), failure.text)


def told(notice: Notice) -> Line:
    """Tell of a delivery or a delay."""
    good, general = ("4", "4.0.0") if notice.action == "delayed" else ("2", "2.0.0")
    fits = notice.status.startswith(good) and _STATUS.fullmatch(notice.status)
    status = notice.status if fits else general
    return Line(notice.recipient, shown(notice), notice.action, status, notice.text, notice.until)


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
            *("\n".join(self._per_recipient(line)) for line in self.lines),
        ]
        return ("Content-Type: message/delivery-status\n\n" + "\n\n".join(groups) + "\n").encode("ascii")

    def _per_message(self) -> Iterator[str]:
        if envelope_id := self.entry.params.get("ENVID"):
            yield f"Original-Envelope-Id: {_line(_decoded(envelope_id))}"
        yield f"Reporting-MTA: dns; {_line(self.host)}"
        yield f"Arrival-Date: {formatdate(self.entry.birth)}"

    def _per_recipient(self, line: Line) -> Iterator[str]:
        yield f"Original-Recipient: {_original_recipient(line)}"
        yield f"Final-Recipient: {_typed(line.final)}"
        yield f"Action: {line.action}"
        yield f"Status: {line.status}"
        peer, said = _PEER.search(line.text), _SAID.search(line.text)
        if peer:
            yield f"Remote-MTA: dns; {_line(peer[1])}"
        if peer and said:
            yield f"Diagnostic-Code: smtp; {_line(said[1])}"
        elif line.text.strip():
            yield f"Diagnostic-Code: x-mailward; {_line(line.text)}"
        yield f"Last-Attempt-Date: {formatdate(self.now)}"
        if line.until:
            yield f"Will-Retry-Until: {formatdate(line.until)}"

    def _returned(self) -> bytes:
        original = self._original()
        kind = "message/rfc822" if self.whole else "text/rfc822-headers"
        head = f"Content-Type: {kind}\n{'' if original.isascii() else _EIGHT}\n"
        return head.encode("ascii") + original

    def _original(self) -> bytes:
        message = self.entry.message
        return bytes(message) if self.whole else message.header


def _status(failure: Failure) -> str:
    """Give the status of a failure: what waited for too long keeps its 4 (RFC 3464 section 2.3.4)."""
    if failure.expired:
        return failure.status if _STATUS.fullmatch(failure.status) else "4.4.7"
    return failure.status if failure.status.startswith("5") and _STATUS.fullmatch(failure.status) else "5.0.0"


def _original_recipient(line: Line) -> str:
    """Give the recipient as its sender named it: in ORCPT, or else to us."""
    kind, _, given = line.recipient.params.get("ORCPT", "").partition(";")
    if not given:
        original = line.recipient.original
        return _typed(original if "@" in original else line.final)
    decoded = _decoded(given) if kind.lower() != "utf-8" else given
    return f"{kind}; {_line(decoded)}" if decoded.isascii() else _typed(decoded)


def _decoded(xtext: str) -> str:
    """Undo the code of RFC 3461 section 4."""
    return _HEX.sub(lambda found: chr(int(found[1], 16)), xtext)


def _typed(address: str) -> str:
    """Write an address with its type; what is not ASCII as RFC 6533 says."""
    quoted = Address(CONTROLS.sub("_", address)).quoted()
    if quoted.isascii():
        return f"rfc822; {quoted}"
    text = quoted.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "utf-8; " + _NOT_RAW.sub(lambda found: f"\\x{{{ord(found[0]):X}}}", text)


def _line(text: str) -> str:
    """Make one line of ASCII of what a program or host said."""
    line = " ".join(CONTROLS.sub(" ", text).split())[:_LONGEST]
    return line.encode("ascii", "replace").decode("ascii")


def _lines(text: str) -> list[str]:
    return [CONTROLS.sub("", line) for line in text.split("\n") if line]
