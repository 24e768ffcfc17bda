"""The SMTP server: aiosmtpd with its read loop, its timers and its commands replaced.

A Server makes one Connection for each client. It knows the protocol and no policy: Reception says what
is taken, and hears of the refusals that are made here, so that each is an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
from typing import TYPE_CHECKING, NamedTuple

import structlog
from aiosmtpd.smtp import SMTP

from gateway.envelope import Client
from gateway.errors import MessageTooBig, QueueFull
from gateway.smtp import reply as replies
from gateway.smtp.framing import BadLine, CommandLines, Content
from gateway.smtp.parameters import MAIL_PARAMETERS, RCPT_PARAMETERS, Refused, check_utf8, parse_argument
from gateway.smtp.reply import Reply, answer, closes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.decision import Decision
    from gateway.envelope import Session, Transaction
    from gateway.message import Spool
    from gateway.reception import Reception
    from gateway.settings import Limits

#: Bytes asked of the socket at a time; twice this much may wait in the buffer of a client that is ahead.
BLOCK = 64 * 1024
#: Longest command line with its CRLF; RFC 5321 section 4.5.3.1.4 asks for 512 and what extensions add.
LONGEST_LINE = 4096
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_log = structlog.get_logger("gateway.smtp")


class Command(NamedTuple):
    """One row of the command table: what must have been said before, the argument, and what it does."""

    needs: str
    argument: bool | None
    act: Callable[[Connection, str], Awaitable[Reply]]


class _Gone(Exception):
    """The client left, or is sent away."""


class Server:
    """Serves SMTP on a listener: `await loop.create_server(server, sock=sock)`."""

    def __init__(
        self,
        reception: Reception,
        limits: Limits,
        greeting: str,
        listener_name: str,
        protocol: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.reception = reception
        self.limits = limits
        #: Our name, and what a site wants said behind it.
        self.greeting = greeting
        self.listener_name = listener_name
        self.protocol = protocol
        self.loop = loop
        self.closing = False
        self.connections: set[Connection] = set()
        self._empty = asyncio.Event()

    def __call__(self) -> Connection:
        """Make the protocol object of a new connection."""
        return Connection(self)

    async def close_gently(self) -> None:
        """Let commands under way come to their reply, say 421 to all clients, wait until they are gone."""
        self.closing = True
        for connection in list(self.connections):
            connection.dismiss(replies.SHUTTING_DOWN, "shutdown")
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    def abort(self) -> None:
        """Cut off whoever is still there."""
        for connection in list(self.connections):
            if isinstance(connection.transport, asyncio.WriteTransport):
                connection.transport.abort()

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is over."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()


class Connection(SMTP):
    """One client. Its task is never cancelled while a command works, only while it waits for the client."""

    def __init__(self, server: Server) -> None:
        # aiosmtpd's own __init__ inspects every attribute of the class and the handler, a fifth of the
        # time of a short session. What the methods that are left of it use is set here.
        self.loop = server.loop
        asyncio.StreamReaderProtocol.__init__(
            self,
            asyncio.StreamReader(limit=BLOCK, loop=server.loop),
            client_connected_cb=self._cb_client_connected,
            loop=server.loop,
        )
        self._server = server
        self._reception = server.reception
        self._limits = server.limits
        self._lines = CommandLines(LONGEST_LINE)
        self._replies = bytearray()
        self._transaction: Transaction | None = None
        self._recipients = self._errors = 0
        self._utf8 = self._waiting = self._in_message = False
        self._strict = self._limits.syntax == "strict"
        #: Why the session ends once the command under way has its reply; "" while it goes on.
        self._reason = ""
        #: What is said then, besides the reply to the command.
        self._farewell: Reply | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session."""
        asyncio.StreamReaderProtocol.connection_made(self, transport)
        self.transport = transport
        server, client = self._server, _socket_name(transport, "peername")
        here, _ = _socket_name(transport, "sockname")
        self._session: Session = self._reception.open(
            server.listener_name, server.protocol, Client(*client), here
        )
        server.connections.add(self)
        if server.closing:
            self.dismiss(replies.SHUTTING_DOWN, "shutdown")
        self._read_until = self.loop.time() + self._limits.idle
        self._session_ends = self.loop.time() + self._limits.session
        self._timer = self.loop.call_at(self._read_until, self._look_at_the_clock)
        self._handler_coroutine = self.loop.create_task(self._handle_client())

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the client is gone; a command under way comes to its end."""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self._session.closed = True

    def eof_received(self) -> bool:
        """Note that the client sends no more; it may still wait for replies."""
        self._reader.feed_eof()
        return True

    # The conversation

    def dismiss(self, reply: Reply, reason: str) -> None:
        """End the session with this reply as soon as no command is under way."""
        if not self._reason:
            self._farewell, self._reason = reply, reason
        if self._waiting and not self._in_message:
            self._interrupt()

    async def _handle_client(self) -> None:
        try:
            await self._converse()
        except _Gone:
            pass
        except Exception:  # noqa: BLE001 - whatever it is, the session has to be closed
            _log.exception("smtp.session_failed", session=self._session.id)
        finally:
            self._timer.cancel()
            self._reset()
            self._reception.disconnect(self._session, self._reason or "lost")
            await self._hang_up()
            self._server.forget(self)

    async def _converse(self) -> None:
        greeting = await self._try("connect", self._greet())
        if greeting.refused and not self._reason:
            # The plugins could not be asked: nobody gets past them.
            greeting, self._reason = replies.NOT_READY, "error"
        self._say(greeting)
        while not self._reason:
            line = self._lines.take()
            if line is None:
                self._lines.feed(await self._read())
            else:
                self._say(await self._obey(line))

    def _say(self, reply: Reply) -> None:
        """Put a reply in line; it leaves when the server has to read again (RFC 2920)."""
        self._replies += reply.wire(utf8=self._utf8)

    async def _read(self) -> bytes:
        """Send what was said and wait for the client; each wait has the whole idle time. Raises _Gone."""
        now = self.loop.time()
        if now >= self._session_ends:
            self.dismiss(replies.SESSION_TOO_LONG, "timeout")
            raise _Gone
        self._read_until = now + self._limits.idle
        self._waiting = True
        try:
            if self._replies:
                self._writer.write(bytes(self._replies))
                self._replies.clear()
                await self._writer.drain()
            data = await self._reader.read(BLOCK)
        except OSError:
            raise _Gone from None
        except asyncio.CancelledError:
            if self._reason:  # our own `_interrupt`
                raise _Gone from None
            raise
        finally:
            self._waiting = False
        if not data:
            raise _Gone
        return data

    def _interrupt(self) -> None:
        """Wake the task out of its wait for the client."""
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def _look_at_the_clock(self) -> None:
        """End the session when the client was waited for too long; one timer serves all reads."""
        now, until = self.loop.time(), min(self._read_until, self._session_ends)
        if not self._waiting:
            until = now + self._limits.idle
        elif now >= until:
            late = replies.IDLE if now >= self._read_until else replies.SESSION_TOO_LONG
            self._farewell, self._reason = late, "timeout"
            self._interrupt()
            return
        self._timer = self.loop.call_at(until, self._look_at_the_clock)

    async def _hang_up(self) -> None:
        if self._farewell is not None:
            self._say(self._farewell)
        if self._replies:
            self._writer.write(bytes(self._replies))
            if self._reason in _SENT_AWAY:
                await self._linger()
        self._writer.close()
        if self._writer.transport.get_write_buffer_size():
            # A client that reads nothing must not hold the connection.
            self.loop.call_later(self._limits.idle, self._writer.transport.abort)

    async def _linger(self) -> None:
        """Read what the client had already sent: to close with bytes unread would take our reply from it."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._writer.write_eof()
            async with asyncio.timeout(_LINGER):
                while await self._reader.read(BLOCK):
                    pass

    async def _obey(self, line: bytes | BadLine) -> Reply:
        """Do one command."""
        if isinstance(line, BadLine):
            reply = _BAD_LINES[line] if self._strict else replies.NOT_IMPLEMENTED
            return self._refuse("command", reply, line.value)
        verb, _, rest = line.partition(b" ")
        command = COMMANDS.get(verb.upper())
        if command is None:
            reply = replies.UNKNOWN_COMMAND if self._strict else replies.NOT_IMPLEMENTED
            return self._refuse("command", reply, "unknown_command")
        rest = rest.strip(b" ") if self._strict else rest.lstrip(b" ")
        argument = rest.decode("utf-8", "surrogateescape")
        stage = verb.decode().lower()
        refusal = self._check(command, argument)
        if refusal is not None:
            return self._refuse(stage, *refusal)
        return await self._try(stage, command.act(self, argument))

    def _check(self, command: Command, argument: str) -> tuple[Reply, str] | None:
        """Check what the command table asks for."""
        if command.needs and self._limits.helo_required and not self._session.helo:
            return replies.NO_HELO, "sequence"
        if command.needs == "mail" and self._transaction is None:
            return replies.NO_MAIL, "sequence"
        if self._strict and command.argument is not None and command.argument != bool(argument):
            return (replies.NEEDS_ARGUMENT if command.argument else replies.NO_ARGUMENT), "syntax"
        return None

    async def _try(self, stage: str, act: Awaitable[Reply]) -> Reply:
        """Run a command; whatever it raises, the client hears a plain reply and the log the rest."""
        try:
            return await act
        except Refused as refused:
            return self._refuse(stage, refused.reply, refused.reason)
        except _Gone:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours never is the client's
            _log.exception("smtp.command_failed", session=self._session.id, stage=stage)
            return self._refuse(stage, _storage_fault(error), "internal_error")

    def _refuse(self, stage: str, reply: Reply, reason: str) -> Reply:
        """Tell a refusal that is the server's own, and count those that only broken clients get."""
        self._reception.refused(self._transaction or self._session, stage, reply, reason)
        self._errors += reply.code in _BROKEN
        if self._errors > self._limits.bad_commands:
            return self._too_many(replies.TOO_MANY_ERRORS, "bad_commands")
        return reply

    def _too_many(self, reply: Reply, limit: str) -> Reply:
        self._reception.refused(self._session, "limit", reply, limit)
        self._reason = "limit"
        return reply

    def _reply(self, decision: Decision | None, stage: str, accepted: Reply) -> Reply:
        """Turn a decision into the reply, and into the end of the session where it is one."""
        if closes(decision, stage):
            self._reason = "disconnected"
        return answer(decision, stage, accepted)

    def _reset(self) -> None:
        """End the transaction, if there is one, without a message."""
        if self._transaction is not None:
            transaction, self._transaction = self._transaction, None
            self._reception.reset(transaction)

    def _message_size(self) -> int:
        own = self._session.message_size
        return self._limits.message_size if own is None else own

    # The commands, as the table at the end names them

    async def _greet(self) -> Reply:
        banner = Reply(220, "", f"{self._server.greeting} ESMTP")
        return self._reply(await self._reception.connect(self._session), "connect", banner)

    async def helo(self, name: str) -> Reply:
        """Greet (RFC 5321 section 4.1.1.1)."""
        return await self._hello(name, Reply(250, "", self._server.greeting), extended=False)

    async def ehlo(self, name: str) -> Reply:
        """Greet, and list the extensions."""
        lines = [self._server.greeting, "PIPELINING", f"SIZE {self._message_size()}", *_EXTENSIONS]
        return await self._hello(name, Reply(250, "", "\n".join(lines)), extended=True)

    async def _hello(self, name: str, accepted: Reply, *, extended: bool) -> Reply:
        if (self._strict and not name.isascii()) or not name.isprintable() or len(name) > _LONGEST_HELO:
            raise Refused(replies.BAD_HELO, "syntax")
        self._reset()
        decision = await self._reception.helo(self._session, name, extended=extended)
        return self._reply(decision, "helo", accepted)

    async def mail(self, argument: str) -> Reply:
        """Begin a transaction."""
        if self._strict and self._transaction is not None:
            raise Refused(replies.NESTED_MAIL, "sequence")
        sender, params = parse_argument(argument, "FROM", "5.1.7", MAIL_PARAMETERS, strict=self._strict)
        check_utf8(sender, params, strict=self._strict)
        if int(params.get("SIZE", 0)) > self._message_size() > 0:
            raise Refused(replies.TOO_BIG, "message_size")
        self._reset()
        self._utf8 = "SMTPUTF8" in params
        transaction, decision = await self._reception.mail(self._session, sender, params)
        reply = self._reply(decision, "mail", replies.SENDER_OK)
        self._transaction, self._recipients = transaction, 0
        if reply.refused:
            self._reset()
        return reply

    async def rcpt(self, argument: str) -> Reply:
        """Add a recipient."""
        transaction = self._begun()
        if self._recipients >= self._limits.recipients:
            self._reception.refused(transaction, "limit", replies.TOO_MANY_RECIPIENTS, "recipients")
            return replies.TOO_MANY_RECIPIENTS
        address, params = parse_argument(argument, "TO", "5.1.3", RCPT_PARAMETERS, strict=self._strict)
        if self._strict and not address:
            raise Refused(replies.NULL_RECIPIENT, "syntax")
        check_utf8(address, transaction.params, strict=self._strict)
        decision = await self._reception.rcpt(transaction, address, params)
        reply = self._reply(decision, "rcpt", replies.RECIPIENT_OK)
        self._recipients += not reply.refused
        return reply

    async def data(self, _: str) -> Reply:
        """Take a message."""
        transaction = self._begun()
        if not self._recipients:
            raise Refused(replies.NO_RECIPIENT, "sequence")
        try:
            reply = await self._take(transaction)
            if not reply.refused:
                self._transaction = None
            return reply
        finally:
            self._reset()

    async def _take(self, transaction: Transaction) -> Reply:
        """Take the content, and with it the duty to deliver."""
        reply = self._reply(await self._reception.data(transaction), "data", replies.GO_AHEAD)
        if reply.refused:
            return reply
        spool = self._reception.spool(transaction)
        try:
            self._say(reply)
            refusal = await self._receive(spool)
            if refusal is not None:
                return self._refuse("message", *refusal)
            message = spool.finish()
        finally:
            spool.discard()
        decision = await self._reception.message(transaction, message)
        return self._reply(decision, "message", Reply(250, "2.0.0", f"queued as {transaction.id}"))

    async def _receive(self, spool: Spool) -> tuple[Reply, str] | None:
        """Read to the end of the content, in bounded memory whatever comes; give what is wrong with it."""
        content = Content(normalise=self._limits.bare_newlines == "normalise")
        # RFC 1870 counts what is on the wire; the spool has the limit, too, and counts what it stores.
        room = (self._message_size() if self._strict else 0) or math.inf
        fault, data = None, self._lines.rest()
        self._in_message = True
        try:
            while True:
                text = content.feed(data)
                if text and not fault and content.octets <= room:
                    fault = _store(spool, text)
                if content.ended:
                    break
                data = await self._read()
        finally:
            self._in_message = False
        self._lines.feed(content.rest)
        if content.malformed:
            return replies.MALFORMED_MESSAGE, "malformed"
        if content.hops >= self._limits.hops:
            return replies.TOO_MANY_HOPS, "hops"
        return (replies.TOO_BIG, "message_size") if content.octets > room else fault

    def _begun(self) -> Transaction:
        """Give the transaction; the command table has seen to it that there is one."""
        if self._transaction is None:
            raise Refused(replies.NO_MAIL, "sequence")
        return self._transaction

    async def rset(self, _: str) -> Reply:
        """Drop the transaction."""
        self._reset()
        return replies.RESET

    async def quit(self, _: str) -> Reply:
        """End the session."""
        self._reason = "quit"
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
    b"HELO": Command("", True, Connection.helo),
    b"EHLO": Command("", True, Connection.ehlo),
    b"MAIL": Command("helo", True, Connection.mail),
    b"RCPT": Command("mail", True, Connection.rcpt),
    b"DATA": Command("mail", False, Connection.data),
    b"RSET": Command("", False, Connection.rset),
    b"NOOP": Command("", None, _always(replies.OK)),
    b"VRFY": Command("", True, _always(replies.CANNOT_VERIFY)),
    b"HELP": Command("", None, _always(replies.HELP)),
    b"QUIT": Command("", False, Connection.quit),
    b"EXPN": Command("", None, _not_implemented),
    b"ETRN": Command("", None, _not_implemented),
    b"TURN": Command("", None, _not_implemented),
    b"AUTH": Command("", None, _not_implemented),
    b"STARTTLS": Command("", None, _not_implemented),
}
_EXTENSIONS = ("8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8")
_BAD_LINES = {BadLine.TOO_LONG: replies.LINE_TOO_LONG, BadLine.MALFORMED: replies.MALFORMED_LINE}
#: Codes that a client that keeps to the protocol never gets; 503 it may, when it pipelines.
_BROKEN = {500, 501, 502, 555}
_LONGEST_HELO = 255
#: Reasons for which we end a session while the client may still be sending.
_SENT_AWAY = {"disconnected", "limit", "error"}
#: How long it may go on sending then, in seconds.
_LINGER = 2.0


def _store(spool: Spool, text: bytes) -> tuple[Reply, str] | None:
    """Write to the spool; give what went wrong, so that the rest of the content can be read first."""
    try:
        spool.write(text)
    except MessageTooBig:
        return replies.TOO_BIG, "message_size"
    except OSError as error:
        _log.warning("smtp.spool_failed", error=str(error))
        return _storage_fault(error), "storage"
    return None


def _storage_fault(error: Exception) -> Reply:
    full = isinstance(error, QueueFull) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
    return replies.DISK_FULL if full else replies.INTERNAL_ERROR


def _socket_name(transport: asyncio.BaseTransport, which: str) -> tuple[str, int]:
    """Give address and port of one side; a unix socket, or a client already gone, has none."""
    name = transport.get_extra_info(which)
    if not isinstance(name, tuple):
        return "", 0
    ip, port = name[:2]
    return (ip.removeprefix("::ffff:") if "." in ip else ip), port
