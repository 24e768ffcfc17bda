"""STARTTLS (RFC 3207), and TLS from the first byte."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from gateway import events
from gateway.reception import about
from gateway.smtp import reply as replies
from gateway.smtp.parameters import Refused
from gateway.smtp.server.frame import Gone
from gateway.smtp.tls import fingerprint

if TYPE_CHECKING:
    from gateway.smtp.server.connection import Connection

#: A handshake may take this many seconds.
_HANDSHAKE = 30.0


def offered(connection: Connection) -> bool:
    """Whether this client may say STARTTLS now."""
    wanted = connection.server.listener.tls in ("optional", "required")
    return wanted and bool(connection.server.certificates) and not connection.session.tls


async def starttls(connection: Connection, _: str) -> None:
    """Begin TLS; what was said before it is forgotten, and what was sent ahead ends the session."""
    if connection.session.tls:
        raise Refused(replies.TLS_TWICE, "sequence")
    if not offered(connection):
        raise Refused(replies.NOT_IMPLEMENTED, "not_implemented")
    connection.reset()
    if connection.ahead():
        # Commands that would be taken for ones that came inside TLS (CVE-2011-0411).
        connection.reason = "error"
        raise Refused(replies.NOT_ALONE, "starttls_injection")
    connection.say(replies.BEGIN_TLS)
    await begin(connection)
    session = connection.session
    session.helo, session.extended, session.user, session.auth = "", False, "", ""


async def begin(connection: Connection) -> None:
    """Shake hands as the server. Raises Gone when that fails."""
    session = connection.session
    chain = connection.reception.chain_of(session)
    try:
        link = await connection.start_tls(connection.server.certificates.context, _HANDSHAKE)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", "") or str(error) or type(error).__name__
        chain.emit(events.TlsFailed(**about(session), error=reason))
        connection.reason = "tls"
        raise Gone from None
    name, version, _ = link.cipher() or ("", "", 0)
    session.tls = f"{link.version() or version} {name}"
    theirs = link.getpeercert(binary_form=True)
    session.certificate = fingerprint(theirs) if theirs else ""
    told = events.TlsEstablished(
        **about(session),
        version=link.version() or version,
        cipher=name,
        verified="certificate" if theirs else "",
    )
    chain.emit(told)
