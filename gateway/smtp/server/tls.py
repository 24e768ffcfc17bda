"""STARTTLS (RFC 3207), and what is known of a session that is under TLS."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from gateway import events
from gateway.events import about
from gateway.smtp import reply as replies
from gateway.smtp.parameters import Refused
from gateway.smtp.server.frame import Gone
from gateway.smtp.tls import fingerprint

if TYPE_CHECKING:
    from gateway.smtp.server.connection import Connection

#: A handshake may take this many seconds.
HANDSHAKE = 30.0


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
    try:
        await connection.start_tls(connection.server.certificates.context, HANDSHAKE)
    except (OSError, ssl.SSLError) as error:
        told = events.TlsFailed(**about(session), error=reason(error))
        connection.reception.chain_of(session).emit(told)
        connection.reason = "tls"
        raise Gone from None
    note(connection)


def note(connection: Connection) -> None:
    """Note on the session what TLS there is, and tell it."""
    link, session = connection.link(), connection.session
    if link is None:
        return
    cipher, version, _ = link.cipher() or ("", "", 0)
    session.tls = f"{link.version() or version} {cipher}"
    theirs = link.getpeercert(binary_form=True)
    session.certificate = fingerprint(theirs) if theirs else ""
    told = events.TlsEstablished(
        **about(session),
        version=link.version() or version,
        cipher=cipher,
        server_name=connection.server.certificates.wanted(link),
        verified="certificate" if theirs else "",
    )
    connection.reception.chain_of(session).emit(told)


def reason(error: Exception) -> str:
    """Say why a handshake failed."""
    return getattr(error, "reason", None) or str(error) or type(error).__name__
