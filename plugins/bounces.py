"""bounces: tell the sender which recipients failed, in qmail's format QSBMF. Replaces qmail-send's bounces.

A message from a sender gives a bounce from the null sender; one from the null sender (itself a bounce, as a
rule) gives a double bounce to the postmaster, from `#@[]`; one from `#@[]` gives nothing: there is never a
third. The bounce shows the addresses that the sender wrote, except where qmail shows the local one: for a
recipient whose whole address stands in virtual_domains.

Options: `sender`, `host`, `double_bounce_to`, `original_limit`.
Events: none of its own; the dispatcher tells `message.bounced`.
"""

from __future__ import annotations

import re
from email.utils import formatdate

from gateway import Address, Birth, Entry, Failure, Message, Plugin, Section, Size, hookimpl, quote_local_part
from gateway.queue import bounce_envelope

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
#: Within a report, line ends stay; a CR would end a line twice on the wire.
_IN_REPORT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
#: A line end behind a line end would end the paragraph; the last byte ends it anyway.
_EMPTY_LINE = re.compile(r"(?<=\n)\n(?=.)", re.DOTALL)


class Settings(Section):
    """Names that qmail kept in bouncefrom, bouncehost, doublebounceto and doublebouncehost."""

    #: Local part of the address in `From:`.
    sender: str = "MAILER-DAEMON"
    #: Its domain, and the name in the text; `gateway.hostname` when empty.
    host: str = ""
    #: Who gets bounces of bounces; `gateway.postmaster` when empty.
    double_bounce_to: str = ""
    #: A larger original comes back without its body.
    original_limit: Size = 1024 * 1024


class Bounces(Plugin[Settings]):
    """Writes QSBMF, byte for byte as its readers (ezmlm and others) expect it."""

    @hookimpl
    def bounce(self, entry: Entry, failures: list[Failure]) -> Birth | None:
        """Write the bounce of an entry."""
        envelope = bounce_envelope(entry.sender, self.settings.double_bounce_to or self.site.postmaster)
        if envelope is None:
            return None
        sender, recipient = envelope
        host = self.settings.host or self.site.hostname
        whole = entry.message.size <= self.settings.original_limit
        text = [_introduction(host, double=bool(sender)), *map(paragraph, failures), _break(whole=whole)]
        returned = "" if sender else recipient
        message = Message(
            b"", _encode("\n" + "".join(text)) + _original(entry.message, returned, whole=whole)
        )
        message.append("Date", formatdate(self.clock.time()))
        message.append("From", f"{quote_local_part(self.settings.sender)}@{host}")
        message.append("To", _in_header(recipient))
        message.append("Subject", "failure notice")
        return Birth(sender, (recipient,), message, "bounce")


def paragraph(failure: Failure) -> str:
    """Write what is told of one recipient; no report can end its paragraph early."""
    report = _IN_REPORT.sub("", failure.text)
    if report and not report.endswith("\n"):
        report += "\n"
    return _EMPTY_LINE.sub("/", f"<{_CONTROLS.sub('_', shown(failure))}>:\n{report}") + "\n"


def shown(failure: Failure) -> str:
    """Give the address under which the sender knows a recipient.

    qmail cannot undo what a whole address in virtual_domains did, and shows the result (qmail spec 5.5).
    """
    recipient = failure.recipient
    key = recipient.rule.rpartition(" -> ")[0].rpartition(": ")[2]
    if recipient.claimed == "virtual_domains" and "@" in key:
        return recipient.address
    if "@" in recipient.original:
        return recipient.original
    return f"{recipient.original}@{recipient.address.domain}"


def _introduction(host: str, *, double: bool) -> str:
    greeting = f"Hi. This is the mail gateway at {host}.\n"
    if double:
        return f"{greeting}The bounce below could not be delivered to the sender that it is for.\n\n"
    return (
        f"{greeting}Your message could not be delivered to the addresses below.\nNobody will try again.\n\n"
    )


def _break(*, whole: bool) -> str:
    if whole:
        return "--- A copy of the message follows.\n\n"
    return "--- The header of the message follows; its body is too large to come back.\n\n"


def _original(message: Message, sender: str, *, whole: bool) -> bytes:
    content = bytes(message) if whole else message.header
    return _encode(f"Return-Path: <{_in_header(sender)}>\n") + content


def _in_header(address: str) -> str:
    return Address(_CONTROLS.sub("_", address)).quoted()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
