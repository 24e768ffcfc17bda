"""AUTH (RFC 4954): carries an exchange of `gateway.smtp.sasl` over the wire."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from gateway.decision import Disconnect
from gateway.smtp import reply as replies
from gateway.smtp.framing import BadLine
from gateway.smtp.parameters import Refused
from gateway.smtp.sasl import LONGEST_RESPONSE, MECHANISMS, Denied, Lookup, Malformed, decode

if TYPE_CHECKING:
    from gateway.envelope import Credentials, ScramKeys
    from gateway.smtp.reply import Reply
    from gateway.smtp.sasl import Exchange
    from gateway.smtp.server.connection import Connection


def mechanisms(connection: Connection) -> list[str]:
    """Name what this client may use now; nothing where a password could be read on the way."""
    listener, session = connection.server.listener, connection.session
    if listener.auth == "none" or session.user or not (session.tls or listener.auth_without_tls):
        return []
    scram = connection.server.login.offers_scram(session)
    return [name for name in MECHANISMS if scram or name != "SCRAM-SHA-256"]


async def auth(connection: Connection, argument: str) -> Reply:
    """Find out who the client is."""
    name, _, initial = argument.partition(" ")
    name = name.upper()
    _check(connection, name)
    login, session = connection.server.login, connection.session
    try:
        exchange = MECHANISMS[name](
            decode(initial.encode("utf-8", "replace")) if initial else None, login.secret
        )
        found = await _carry(connection, exchange)
        decision = found if isinstance(found, Disconnect) else await login.check(session, found)
    except Malformed:
        await login.wrong(session, name, "", "malformed")
        raise Refused(replies.BAD_RESPONSE, "malformed") from None
    except Denied as denied:
        decision = await login.wrong(session, name, denied.login, "credentials")
    return connection.reply(decision, "authenticate", replies.AUTHENTICATED)


def _check(connection: Connection, name: str) -> None:
    """Refuse what must not be asked now."""
    listener, session = connection.server.listener, connection.session
    if listener.auth == "none":
        raise Refused(replies.NOT_IMPLEMENTED, "not_implemented")
    if session.user or connection.transaction is not None:
        raise Refused(replies.AUTH_TWICE if session.user else replies.NESTED_MAIL, "sequence")
    if not (session.tls or listener.auth_without_tls):
        raise Refused(replies.AUTH_NEEDS_TLS, "tls")
    if name not in mechanisms(connection):
        raise Refused(replies.UNKNOWN_MECHANISM, "mechanism")


async def _carry(connection: Connection, exchange: Exchange) -> Credentials | Disconnect:
    """Go through an exchange, step by step. Raises Malformed, Denied, Refused, Gone.

    Over the limit no step is taken: SCRAM's proof is judged within the exchange, and its answer would tell.
    """
    login = connection.server.login
    answer: ScramKeys | bytes | None = None
    try:
        while (over := await login.over(connection.session)) is None:
            step = exchange.send(answer)
            if isinstance(step, Lookup):
                answer = await login.keys(connection.session, step.login)
            else:
                answer = await _ask(connection, step.text)
    except StopIteration as end:
        credentials: Credentials = end.value
        return credentials
    return over


async def _ask(connection: Connection, challenge: bytes) -> bytes:
    connection.challenge(base64.b64encode(challenge))
    line = await connection.line(LONGEST_RESPONSE)
    if line == b"*":
        raise Refused(replies.AUTH_CANCELLED, "cancelled")
    if line is BadLine.TOO_LONG:
        raise Refused(replies.RESPONSE_TOO_LONG, line.value)
    if isinstance(line, BadLine):
        raise Malformed
    return decode(line) if line else b""
