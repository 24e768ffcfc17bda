"""The frame of a session: aiosmtpd with its read loop and its timers replaced. It knows no verb."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from typing import TYPE_CHECKING

import structlog
from aiosmtpd.smtp import SMTP

from gateway.envelope import Client
from gateway.smtp import reply as replies
from gateway.smtp.framing import CommandLines

if TYPE_CHECKING:
    import ssl

    from gateway.envelope import Session
    from gateway.smtp.framing import BadLine
    from gateway.smtp.reply import Reply
    from gateway.smtp.server.listening import Server

#: Bytes asked of the socket at a time; twice this much may wait in the buffer of a client that is ahead.
BLOCK = 64 * 1024
#: Longest command line with its CRLF; RFC 5321 section 4.5.3.1.4 asks for 512 and what extensions add.
LONGEST_LINE = 4096
#: Reasons for which we end a session while the client may still be sending.
_SENT_AWAY = {"disconnected", "limit", "error", "timeout", "locked"}
#: How long it may go on sending then, in seconds.
_LINGER = 2.0
_log = structlog.get_logger("gateway.smtp")


class Gone(Exception):
    """The client left, or is sent away."""


class Frame(SMTP):
    """One client. Its task is never cancelled while a command works, only while it waits for the client."""

    #: aiosmtpd's own session is of another class; nothing that is left of it looks there.
    session: Session  # type: ignore[assignment]

    def __init__(self, server: Server, introduced: tuple[Client, str] | None = None) -> None:
        # aiosmtpd's own __init__ inspects every attribute of the class and the handler, a fifth of the
        # time of a short session. What the methods that are left of it use is set here.
        self.loop = server.loop
        asyncio.StreamReaderProtocol.__init__(
            self,
            asyncio.StreamReader(limit=BLOCK, loop=server.loop),
            client_connected_cb=self._cb_client_connected,
            loop=server.loop,
        )
        self.server = server
        #: The client, and the address that it reached, where a proxy has named them.
        self._introduced = introduced
        self.reception = server.reception
        self.limits = server.limits
        self.lines = CommandLines(LONGEST_LINE)
        #: The client may be answered in UTF-8.
        self.utf8 = False
        #: Content is under way: a gentle end waits for it.
        self.in_message = False
        #: Why the session ends once the command under way has its reply; "" while it goes on.
        self.reason = ""
        #: What is said then, besides the reply to the command.
        self.farewell: Reply | None = None
        #: Nothing more is read from the client, not even what content is under way.
        self._cut = False
        self._replies = bytearray()
        self._waiting = False
        #: Seconds that went by in waiting for the client.
        self.waited = 0.0
        #: The connection is gone, not only the session over.
        self._lost = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session."""
        asyncio.StreamReaderProtocol.connection_made(self, transport)
        self.transport = transport
        server, listener = self.server, self.server.listener
        peer, port = _socket_name(transport, "peername")
        here, _ = _socket_name(transport, "sockname")
        client, here = self._introduced or (Client(peer, port), here)
        #: Who may be trusted with XCLIENT: the other end, or whom its proxy has named; no XCLIENT changes it.
        self.peer = client.ip
        self.session = self.reception.open(listener.name, listener.protocol, client, here)
        server.connections.add(self)
        if server.closing:
            self.dismiss(replies.SHUTTING_DOWN, "shutdown")
        self._read_until = self.loop.time() + self.limits.idle
        self._session_ends = self.loop.time() + self.limits.session
        self._timer = self.loop.call_at(self._read_until, self._look_at_the_clock)
        self._handler_coroutine = self.loop.create_task(self._handle_client())

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the client is gone; a command under way comes to its end."""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self._lost = self.session.closed = True

    def eof_received(self) -> bool:
        """Note that the client sends no more; it may still wait for replies, which TLS does not allow."""
        self._reader.feed_eof()
        return not self._over_ssl

    # The conversation

    async def renew(self, client: Client, local_ip: str) -> None:
        """Begin anew, as with a connection of this client; what is left is the wire, TLS and all."""
        tls = self.session.tls
        self.session = await self.reception.renew(self.session, client, local_ip)
        self.session.tls, self.session.closed = tls, self._lost
        self.utf8 = False

    def dismiss(self, reply: Reply, reason: str, *, at_once: bool = False) -> None:
        """End the session with this reply when no command is under way; `at_once` in content, too."""
        if not self.reason or at_once:
            self.farewell, self.reason = reply, reason
        self._cut = self._cut or at_once
        if self._waiting and (at_once or not self.in_message):
            self._interrupt()

    def abort(self) -> None:
        """Cut the client off."""
        self._writer.transport.abort()

    async def _handle_client(self) -> None:
        try:
            await self.converse()
        except Gone:
            pass
        except Exception:  # noqa: BLE001 - whatever it is, the session has to be closed
            _log.exception("smtp.session_failed", session=self.session.id)
        finally:
            self._timer.cancel()
            self.over()
            await self._hang_up()
            self.server.forget(self)

    @abstractmethod
    async def converse(self) -> None:
        """Greet, and answer until there is a `reason` to end."""

    @abstractmethod
    def over(self) -> None:
        """The session has ended; what it had begun has to be given up."""

    def say(self, reply: Reply) -> None:
        """Put a reply in line; it leaves when the server has to read again (RFC 2920)."""
        self._replies += reply.wire(utf8=self.utf8)

    def challenge(self, text: bytes) -> None:
        """Put a step of AUTH in line: one line, however long (RFC 4954 section 4)."""
        self._replies += b"334 " + text + b"\r\n"

    async def line(self, longest: int = LONGEST_LINE) -> bytes | BadLine:
        """Give the next line of the client, without its CRLF; all of it has the idle time. Raises Gone."""
        until = 0.0
        self.lines.limit = longest
        while (line := self.lines.take()) is None:
            until = until or self.loop.time() + self.limits.idle
            self.lines.feed(await self.read(until))
        return line

    async def read(self, until: float = 0.0) -> bytes:
        """Send what was said and wait for the client, at most the idle time, or `until`. Raises Gone."""
        now = self.loop.time()
        if now >= self._session_ends:
            self.dismiss(replies.SESSION_TOO_LONG, "timeout")
        if self._cut or now >= self._session_ends:
            raise Gone
        self._read_until = until or now + self.limits.idle
        self._waiting = True
        try:
            if self._replies:
                self._send()
                await self._writer.drain()
            data = await self._reader.read(BLOCK)
        except OSError:
            raise Gone from None
        except asyncio.CancelledError:
            if self.reason:  # our own `_interrupt`
                raise Gone from None
            raise
        finally:
            self._waiting = False
            self.waited += self.loop.time() - now
        if not data:
            raise Gone
        return data

    def ahead(self) -> bool:
        """Stop to read, and say whether the client has sent more than what was answered."""
        self._pause()
        return bool(self.lines.rest() or self._reader._buffer)  # type: ignore[attr-defined]  # noqa: SLF001

    async def start_tls(self, context: ssl.SSLContext, seconds: float) -> None:
        """Send what was said, then shake hands; nothing may be `ahead`. Raises OSError, ssl.SSLError."""
        self._pause()
        self._send()
        transport = await self.loop.start_tls(
            self._writer.transport, self, context, server_side=True, ssl_handshake_timeout=seconds
        )
        if transport is None:
            raise ConnectionResetError
        self.transport = self._reader._transport = transport  # type: ignore[attr-defined]  # noqa: SLF001
        self._writer = asyncio.StreamWriter(transport, self, self._reader, self.loop)
        self._over_ssl = True

    def link(self) -> ssl.SSLObject | None:
        """Give the TLS that is up, None when there is none."""
        found: ssl.SSLObject | None = self._writer.get_extra_info("ssl_object")
        return found

    def _send(self) -> None:
        """Send what was said; to a client that is gone there is nothing to send, and uvloop would raise."""
        if not self._lost:
            self._writer.write(bytes(self._replies))
        self._replies.clear()

    def _pause(self) -> None:
        if not self.session.closed:
            self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def _interrupt(self) -> None:
        """Wake the task out of its wait for the client."""
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def _look_at_the_clock(self) -> None:
        """End the session when the client was waited for too long; one timer serves all reads."""
        now, until = self.loop.time(), min(self._read_until, self._session_ends)
        if not self._waiting:
            until = now + self.limits.idle
        elif now >= until:
            late = replies.IDLE if now >= self._read_until else replies.SESSION_TOO_LONG
            self.farewell, self.reason = late, "timeout"
            self._interrupt()
            return
        self._timer = self.loop.call_at(until, self._look_at_the_clock)

    async def _hang_up(self) -> None:
        if self.farewell is not None:
            self.say(self.farewell)
        if self._replies:
            self._send()
            if self.reason in _SENT_AWAY:
                await self._linger()
        self._writer.close()
        if self._writer.transport.get_write_buffer_size():
            # A client that reads nothing must not hold the connection.
            self.loop.call_later(self.limits.idle, self._writer.transport.abort)

    async def _linger(self) -> None:
        """Read what the client had already sent: to close with bytes unread would take our reply from it."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._writer.write_eof()
            async with asyncio.timeout(_LINGER):
                while await self._reader.read(BLOCK):
                    pass


def _socket_name(transport: asyncio.BaseTransport, which: str) -> tuple[str, int]:
    """Give address and port of one side; a unix socket, or a client already gone, has none."""
    name = transport.get_extra_info(which)
    if not isinstance(name, tuple):
        return "", 0
    ip, port = name[:2]
    return (ip.removeprefix("::ffff:") if "." in ip else ip), port
