"""bounces: tell the sender which recipients failed. Replaces qmail-send's bounces.

A message from a sender gives a bounce from the null sender; one from the null sender (itself a bounce, as a
rule) gives a double bounce to the postmaster, from `#@[]`; one from `#@[]` gives nothing: there is never a
third. The bounce shows the addresses that the sender wrote, except where qmail shows the local one: for a
recipient whose whole address stands in virtual_domains.

Options: `format` (qmail's QSBMF, or the multipart/report of RFC 3464), `sender`, `host`, `double_bounce_to`,
`original_limit`.
Events: none of its own; the dispatcher tells `message.bounced`.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import Literal

from gateway import Birth, Entry, Failure, Message, Plugin, Section, Size, hookimpl, quote_local_part
from gateway.queue import bounce_envelope

from . import qsbmf, rfc3464
from .shown import in_header


class Settings(Section):
    """Names that qmail kept in bouncefrom, bouncehost, doublebounceto and doublebouncehost."""

    #: `qsbmf`: as qmail wrote, which ezmlm reads; `rfc3464`: multipart/report, which most others read.
    format: Literal["qsbmf", "rfc3464"] = "qsbmf"
    #: Local part of the address in `From:`.
    sender: str = "MAILER-DAEMON"
    #: Its domain, and the name in the text; `gateway.hostname` when empty.
    host: str = ""
    #: Who gets bounces of bounces; `gateway.postmaster` when empty.
    double_bounce_to: str = ""
    #: A larger original comes back without its body.
    original_limit: Size = 1024 * 1024


class Bounces(Plugin[Settings]):
    """Writes the message that tells of failures."""

    @hookimpl
    def bounce(self, entry: Entry, failures: list[Failure]) -> Birth | None:
        """Write the bounce of an entry."""
        envelope = bounce_envelope(entry.sender, self.settings.double_bounce_to or self.site.postmaster)
        if envelope is None:
            return None
        sender, recipient = envelope
        host = self.settings.host or self.site.hostname
        whole = entry.message.size <= self.settings.original_limit
        double = bool(sender)
        if self.settings.format == "qsbmf":
            returned = "" if double else recipient
            content = qsbmf.body(host, failures, entry.message, returned, double=double, whole=whole)
            more = {}
        else:
            report = rfc3464.Report(host, entry, failures, self.clock.time(), double=double, whole=whole)
            content, more = report.body(), report.fields()
        message = Message(b"", content)
        message.append("Date", formatdate(self.clock.time()))
        message.append("From", f"{quote_local_part(self.settings.sender)}@{host}")
        message.append("To", in_header(recipient))
        message.append("Subject", "failure notice")
        for name, value in more.items():
            message.append(name, value)
        return Birth(sender, (recipient,), message, "bounce")
