"""The table of verbs, and those that take a line: HELO, EHLO, RSET, NOOP, VRFY, HELP, QUIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.smtp import reply as replies
from gateway.smtp.parameters import Refused
from gateway.smtp.reply import Reply
from gateway.smtp.server.auth import auth, mechanisms
from gateway.smtp.server.connection import Command
from gateway.smtp.server.content import bdat, data
from gateway.smtp.server.proxy import ATTRIBUTES, trusted, xclient
from gateway.smtp.server.tls import offered, starttls
from gateway.smtp.server.transaction import mail, rcpt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.smtp.server.connection import Connection

_LONGEST_HELO = 255


async def helo(connection: Connection, name: str) -> Reply:
    """Greet (RFC 5321 section 4.1.1.1)."""
    accepted = Reply(250, "", connection.server.greeting)
    return await _hello(connection, name, accepted, extended=False)


async def ehlo(connection: Connection, name: str) -> Reply:
    """Greet, and list the extensions."""
    lines = [connection.server.greeting, *extensions(connection)]
    return await _hello(connection, name, Reply(250, "", "\n".join(lines)), extended=True)


def extensions(connection: Connection) -> Iterator[str]:
    """Give what EHLO offers to this client now."""
    yield "PIPELINING"
    yield f"SIZE {connection.message_size()}"
    yield "8BITMIME"
    yield "ENHANCEDSTATUSCODES"
    yield "SMTPUTF8"
    yield "CHUNKING"
    yield "DSN"
    if connection.session.tls:
        yield "REQUIRETLS"
    if offered(connection):
        yield "STARTTLS"
    if found := mechanisms(connection):
        yield f"AUTH {' '.join(found)}"
    if trusted(connection.peer, connection.server.listener.xclient):
        yield f"XCLIENT {' '.join(ATTRIBUTES)}"


async def _hello(connection: Connection, name: str, accepted: Reply, *, extended: bool) -> Reply:
    if (connection.strict and not name.isascii()) or not name.isprintable() or len(name) > _LONGEST_HELO:
        raise Refused(replies.BAD_HELO, "syntax")
    connection.reset()
    decision = await connection.reception.helo(connection.session, name, extended=extended)
    return connection.reply(decision, "helo", accepted)


async def rset(connection: Connection, _: str) -> Reply:
    """Drop the transaction."""
    connection.reset()
    return replies.RESET


async def quit_(connection: Connection, _: str) -> Reply:
    """End the session."""
    connection.reason = "quit"
    return replies.GOODBYE


def _always(reply: Reply) -> Callable[[Connection, str], Awaitable[Reply]]:
    """Make the action of a command that has just one answer."""

    async def act(_: Connection, __: str) -> Reply:
        return reply

    return act


async def _not_implemented(_: Connection, __: str) -> Reply:
    raise Refused(replies.NOT_IMPLEMENTED, "not_implemented")


#: verb -> what must be there before it, its argument (needed, forbidden or free), what it does.
COMMANDS = {
    b"HELO": Command("", True, helo),
    b"EHLO": Command("", True, ehlo),
    b"MAIL": Command("client", True, mail),
    b"RCPT": Command("mail", True, rcpt),
    b"DATA": Command("mail", False, data),
    # Whatever is wrong with it, it has to read the octets that follow.
    b"BDAT": Command("", None, bdat),
    b"RSET": Command("", False, rset),
    b"NOOP": Command("", None, _always(replies.OK)),
    b"VRFY": Command("", True, _always(replies.CANNOT_VERIFY)),
    b"HELP": Command("", None, _always(replies.HELP)),
    b"QUIT": Command("", False, quit_),
    b"EXPN": Command("", None, _not_implemented),
    b"ETRN": Command("", None, _not_implemented),
    b"TURN": Command("", None, _not_implemented),
    b"AUTH": Command("helo", True, auth),
    b"STARTTLS": Command("", False, starttls),
    b"XCLIENT": Command("", True, xclient),
}
#: LMTP greets by its own word alone (RFC 2033 section 4.1).
LMTP_COMMANDS = {verb: command for verb, command in COMMANDS.items() if verb not in (b"HELO", b"EHLO")} | {
    b"LHLO": COMMANDS[b"EHLO"]
}
