"""received: put a Received field in front of every message. Replaces those of qmail-smtpd and qmail-queue.

Options: `format`. `rfc` is RFC 5321 section 4.4 with the protocol words of RFC 3848 and RFC 6531; `qmail`
is qmail-smtpd's line, for analysers that know it. What the client claims of itself can hold no byte that
would end the field or look like another. A `for` clause is there only when there is one recipient, so that
no recipient sees another.
"""

from __future__ import annotations

import contextlib
import pwd
import re
from email.utils import format_datetime
from typing import TYPE_CHECKING, Literal

from gateway import Plugin, Section, hookimpl

if TYPE_CHECKING:
    from datetime import datetime

    from gateway import Message, Session, Transaction

#: The longest name or address that goes into a field; a line may have 998 octets (RFC 5322 section 2.1.1).
LONGEST = 255

_QMAIL_USERS = {"alias": "by alias", "qmaild": "from network", "qmails": "for bounce"}
_UNSAFE = re.compile(rb"[^A-Za-z0-9.@%+/=:\[\]-]")


class Settings(Section):
    """What the field looks like."""

    #: `rfc`, or `qmail` for the line that qmail-smtpd writes.
    format: Literal["rfc", "qmail"] = "rfc"


class Received(Plugin[Settings]):
    """Writes the trace field."""

    @hookimpl
    def incoming(self, transaction: Transaction, message: Message) -> Message | None:
        """Put the field in front; mail that we only answer for by milter is not received here."""
        if transaction.session is not None and transaction.session.protocol == "milter":
            return None
        write = _qmail if self.settings.format == "qmail" else _rfc
        message.prepend("Received", write(transaction, self.site.hostname, self.clock.now()))
        return message


def _rfc(transaction: Transaction, hostname: str, now: datetime) -> str:
    session = transaction.session
    if session is None:
        return f"by {hostname} ({_birth(transaction)})\n\tid {transaction.id};\n\t{format_datetime(now)}"
    if session.protocol == "submit":
        who = _invoker(session.user)
        return f"by {hostname} (submit {who})\n\tid {transaction.id};\n\t{format_datetime(now)}"
    helo = _safe(session.helo) or "unknown"
    tls = f" ({session.tls})" if session.tls else ""
    return (
        f"from {helo} ({_safe(session.client.name) or 'unknown'} [{_literal(session.client.ip)}])\n"
        f"\tby {hostname} with {_protocol(transaction, session)}{tls}\n"
        f"\tid {transaction.id}{_for(transaction)};\n"
        f"\t{format_datetime(now)}"
    )


def _qmail(transaction: Transaction, hostname: str, now: datetime) -> str:
    """Write the lines of qmail spec 3.3, and those of 4.2 for mail that was born here."""
    date = f"{now.day} {now:%b %Y %H:%M:%S} -0000"
    session = transaction.session
    if session is None:
        who = "for bounce" if transaction.origin == "bounce" else "by alias"
        return f"(qmail {transaction.id} invoked {who}); {date}"
    if session.protocol == "submit":
        return f"(qmail {transaction.id} invoked {_invoker(session.user)}); {date}"
    host = _safe(session.client.name) or "unknown"
    helo = _safe(session.helo)
    said = f" (HELO {helo})" if helo and helo.lower() != host.lower() else ""
    return f"from {host}{said} ({_safe(session.client.ip) or 'unknown'})\n  by {hostname} with SMTP; {date}"


def _invoker(user: str) -> str:
    """Say who ran qmail-queue; qmail has words of its own for some of its users."""
    if user in _QMAIL_USERS:
        return _QMAIL_USERS[user]
    with contextlib.suppress(KeyError):
        return f"by uid {pwd.getpwnam(user).pw_uid}"
    return f"by uid {_safe(user.removeprefix('uid '))}"  # no user has this number any more


def _safe(text: str) -> str:
    """Put `?` for each byte that qmail would not let into the field."""
    return _UNSAFE.sub(b"?", text.encode("utf-8", "surrogateescape")[:LONGEST]).decode("ascii")


def _literal(ip: str) -> str:
    """Write an address as a literal of RFC 5321 section 4.1.3."""
    return f"IPv6:{_safe(ip)}" if ":" in ip else _safe(ip) or "unknown"


def _protocol(transaction: Transaction, session: Session) -> str:
    """Name the protocol as RFC 3848 and RFC 6531 register it: SMTP, ESMTPSA, UTF8LMTPS ..."""
    lmtp = session.protocol == "lmtp"
    if not (lmtp or session.extended):
        return "SMTP"
    utf8 = "SMTPUTF8" in transaction.params
    word = ("UTF8" if utf8 else "") + ("LMTP" if lmtp else "SMTP" if utf8 else "ESMTP")
    return f"{word}{'S' if session.tls else ''}{'A' if session.user else ''}"


def _for(transaction: Transaction) -> str:
    if len(transaction.recipients) != 1:
        return ""
    address = transaction.recipients[0].original.quoted()
    return f"\n\tfor <{address}>" if re.fullmatch(rf"[!-~]{{1,{LONGEST}}}", address) else ""


def _birth(transaction: Transaction) -> str:
    """Say how a message was born here: "bounce of 0199..."."""
    return f"{transaction.origin} of {transaction.parent}" if transaction.parent else transaction.origin
