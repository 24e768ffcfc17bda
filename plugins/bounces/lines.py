"""One recipient of a delivery status notification: its fields, and its address in them. Pure: no IO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

from gateway import Address

from .shown import CONTROLS, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway import Failure, Notice, Recipient

#: A line of a header may have 998 characters (RFC 5322 section 2.1.1); a reply may be longer.
_LONGEST = 900
#: What stands raw in an address of the type utf-8 (RFC 6533 section 3); the rest is `\x{...}`.
_NOT_RAW = re.compile(r"[^!-*,-<>-\[\]-~]")
#: How `remote` begins and ends what it says of a host that was spoken to.
_PEER = re.compile(r"^(\S+)\[[0-9A-Fa-f.:]+\]:\d+: ", re.MULTILINE)
_SAID = re.compile(r"^The host said: (.*(?:\n\d{3}[ -].*)*)", re.MULTILINE)
_HEX = re.compile(r"\+([0-9A-F]{2})")
_STATUS = re.compile(r"[245](?:\.(?:0|[1-9]\d{0,2})){2}")


@dataclass(frozen=True, slots=True)
class Line:
    """What is told of one recipient."""

    recipient: Recipient
    #: The address under which the sender knows it.
    final: str
    action: str
    status: str
    text: str
    #: For a delay: until when delivery is tried, seconds since the epoch.
    until: float = 0.0

    def fields(self, now: float) -> Iterator[str]:
        """Give the fields of its group."""
        yield f"Original-Recipient: {_original_recipient(self)}"
        yield f"Final-Recipient: {_typed(self.final)}"
        yield f"Action: {self.action}"
        yield f"Status: {self.status}"
        peer, said = _PEER.search(self.text), _SAID.search(self.text)
        if peer:
            yield f"Remote-MTA: dns; {one_line(peer[1])}"
        if peer and said:
            yield f"Diagnostic-Code: smtp; {one_line(said[1])}"
        elif self.text.strip():
            yield f"Diagnostic-Code: x-mailward; {one_line(self.text)}"
        yield f"Last-Attempt-Date: {formatdate(now)}"
        if self.until:
            yield f"Will-Retry-Until: {formatdate(self.until)}"


def failed(failure: Failure) -> Line:
    """Tell of a failure."""
    return Line(failure.recipient, shown(failure), "failed", _status(failure), failure.text)


def told(notice: Notice) -> Line:
    """Tell of a delivery or a delay."""
    good, general = ("4", "4.0.0") if notice.action == "delayed" else ("2", "2.0.0")
    fits = notice.status.startswith(good) and _STATUS.fullmatch(notice.status)
    status = notice.status if fits else general
    return Line(notice.recipient, shown(notice), notice.action, status, notice.text, notice.until)


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
    decoded = decoded_xtext(given) if kind.lower() != "utf-8" else given
    return f"{kind}; {one_line(decoded)}" if decoded.isascii() else _typed(decoded)


def decoded_xtext(xtext: str) -> str:
    """Undo the code of RFC 3461 section 4."""
    return _HEX.sub(lambda found: chr(int(found[1], 16)), xtext)


def _typed(address: str) -> str:
    """Write an address with its type; what is not ASCII as RFC 6533 says."""
    quoted = Address(CONTROLS.sub("_", address)).quoted()
    if quoted.isascii():
        return f"rfc822; {quoted}"
    text = quoted.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "utf-8; " + _NOT_RAW.sub(lambda found: f"\\x{{{ord(found[0]):X}}}", text)


def one_line(text: str) -> str:
    """Make one line of ASCII of what a program or host said."""
    line = " ".join(CONTROLS.sub(" ", text).split())[:_LONGEST]
    return line.encode("ascii", "replace").decode("ascii")
