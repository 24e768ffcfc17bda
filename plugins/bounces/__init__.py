"""bounces: tell senders which recipients failed, and what else they wished. Replaces qmail-send's bounces.

A message from a sender gives a bounce from the null sender; one from the null sender (itself a bounce, as a
rule) gives a double bounce to the postmaster, from `#@[]`; one from `#@[]` gives nothing: there is never a
third. The bounce shows the addresses that the sender wrote, except where qmail shows the local one: for a
recipient whose whole address stands in virtual_domains. Who asked by the parameters of DSN (RFC 3461) is
answered in the format that they mean, also about deliveries and delays.

Options: `format` (qmail's QSBMF, or the multipart/report of RFC 3464), `sender`, `host`, `double_bounce_to`,
`original_limit`.
Events: none of its own; the dispatcher tells `message.bounced`.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import Literal

from gateway import (
    Address,
    Birth,
    Entry,
    Failure,
    Message,
    Notice,
    Plugin,
    Section,
    Size,
    hookimpl,
    quote_local_part,
)
from gateway.queue import bounce_envelope

from . import lines, qsbmf, rfc3464
from .shown import in_header


class Settings(Section):
    """Names that qmail kept in bouncefrom, bouncehost, doublebounceto and doublebouncehost."""

    #: `qsbmf`: as qmail wrote, which ezmlm reads; `rfc3464`: multipart/report, which most others read, and
    #: which a sender gets in any case who asked by DSN.
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
        whole = _whole(entry) and entry.message.size <= self.settings.original_limit
        double = bool(sender)
        if self.settings.format == "qsbmf" and not _asked(entry, failures):
            returned = "" if double else recipient
            content = qsbmf.body(self._host, failures, entry.message, returned, double=double, whole=whole)
            return self._birth(sender, recipient, "failure notice", content, {})
        told = [lines.failed(failure) for failure in failures]
        report = rfc3464.Report(self._host, entry, told, self.clock.time(), double=double, whole=whole)
        return self._birth(sender, recipient, "failure notice", report.body(), report.fields())

    @hookimpl
    def report(self, entry: Entry, notices: list[Notice]) -> Birth | None:
        """Write what a sender wished to hear of deliveries and delays, with the original's header."""
        envelope = bounce_envelope(entry.sender, "")
        if envelope is None or envelope[0]:
            return None
        told = [lines.told(notice) for notice in notices]
        report = rfc3464.Report(self._host, entry, told, self.clock.time(), double=False, whole=False)
        late = all(notice.action == "delayed" for notice in notices)
        subject = "delay notice" if late else "delivery notice"
        return self._birth(*envelope, subject, report.body(), report.fields())

    @property
    def _host(self) -> str:
        return self.settings.host or self.site.hostname

    def _birth(
        self, sender: Address, recipient: Address, subject: str, content: bytes, more: dict[str, str]
    ) -> Birth:
        message = Message(b"", content)
        message.append("Date", formatdate(self.clock.time()))
        message.append("From", f"{quote_local_part(self.settings.sender)}@{self._host}")
        message.append("To", in_header(recipient))
        message.append("Subject", subject)
        for name, value in more.items():
            message.append(name, value)
        return Birth(sender, (recipient,), message, "bounce")


def _whole(entry: Entry) -> bool:
    """Whether the whole original may come back (RFC 3461 section 4.3, RFC 8689 section 5)."""
    return entry.params.get("RET", "").upper() != "HDRS" and "REQUIRETLS" not in entry.params


def _asked(entry: Entry, failures: list[Failure]) -> bool:
    """Whether the sender speaks DSN."""
    params = [entry.params, *(failure.recipient.params for failure in failures)]
    return any(name in one for one in params for name in ("RET", "ENVID", "NOTIFY", "ORCPT"))
