"""The client's side of an SMTP connection on asyncio: time limits, TLS, flow control.

What is said, and what the answers mean, is in dialogue.py.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gateway.errors import DialogueError, TlsFailed
from gateway.faultpoint import point
from gateway.message import FileBody
from gateway.smtp.dialogue import Dialogue, Envelope, Hear, Pour, Say, Secure, Talk, Verdict
from gateway.smtp.wire import RemoteReply, ReplyReader, encode_content

if TYPE_CHECKING:
    from typing import TypeVar

    from gateway.message import Message

    R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that the other host may take (RFC 5321 section 4.5.3.2)."""

    connect: float = 60.0
    #: For the greeting, for each reply, and for each block of content to be taken.
    command: float = 300.0
    #: For the reply to the final dot.
    final: float = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """One address of a host to connect to."""

    host: str
    ip: str
    port: int = 25

    def __str__(self) -> str:
        return f"{self.host}[{self.ip}]:{self.port}"


class Connection(asyncio.Protocol):
    """One connection to a mail host, good for several messages. Made by `connect`."""

    def __init__(self, target: Target, helo: str, timeouts: Timeouts) -> None:
        self.target = target
        #: Messages that were offered on it.
        self.offered = 0
        self._dialogue = Dialogue(helo)
        self._timeouts = timeouts
        self._reader = ReplyReader()
        self._transport: asyncio.Transport | None = None
        self._fault: DialogueError | None = None
        self._heard = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def connect(
        cls, target: Target, helo: str, timeouts: Timeouts, tls: ssl.SSLContext | None
    ) -> Connection:
        """Connect and go on to where MAIL may come; with TLS where the host offers it and `tls` is given.

        A host whose handshake fails is asked again without TLS. Raises DialogueError when this address
        will not do now.
        """
        try:
            return await cls(target, helo, timeouts).begin(tls)
        except TlsFailed:
            return await cls(target, helo, timeouts).begin(None)

    @property
    def reusable(self) -> bool:
        """Another message may be sent: nothing is lost, pending or out of step."""
        return not self._fault and not self._dialogue.finished and self._reader.empty

    @property
    def secure(self) -> bool:
        """The connection is under TLS."""
        return self._dialogue.secure

    async def send(self, envelope: Envelope, message: Message) -> list[Verdict]:
        """Offer one message; gives a verdict for each recipient.

        Raises DialogueError only while the host has taken nothing: another address may be tried then.
        """
        self.offered += 1
        return await self._run(self._dialogue.transaction(envelope), message=message)

    def quit(self) -> None:
        """Say QUIT if anybody listens, and hang up without waiting for the answer, as qmail does."""
        if self._transport is None or self._transport.is_closing():
            return
        if self.reusable:
            self._transport.write(b"QUIT\r\n")
        self._transport.close()

    def abort(self) -> None:
        """Hang up at once; nothing unsent leaves any more."""
        self._fault = self._fault or DialogueError("we hung up")
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio); uvloop's is no subclass of asyncio's."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end (asyncio)."""
        self._fail(DialogueError("the connection was lost" + (f": {exc}" if exc else "")))

    def data_received(self, data: bytes) -> None:
        """Read replies (asyncio)."""
        if self._fault:
            return
        try:
            self._reader.feed(data)
        except DialogueError as error:
            self._fail(error)
        self._heard.set()

    def pause_writing(self) -> None:
        """Stop pouring (asyncio)."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on pouring (asyncio)."""
        self._writable.set()

    def _fail(self, fault: DialogueError) -> None:
        self._fault = self._fault or fault
        self._heard.set()
        self._writable.set()

    async def begin(self, tls: ssl.SSLContext | None) -> Connection:
        """Connect this one, and go through greeting, EHLO and TLS."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await loop.create_connection(lambda: self, self.target.ip, self.target.port)
        except TimeoutError as error:
            raise DialogueError("no connection in time", "4.4.1") from error
        except OSError as error:
            raise DialogueError(f"no connection: {error.strerror or error}", "4.4.1") from error
        await self._run(self._dialogue.begin(tls=tls is not None), tls=tls)
        return self

    async def _run(
        self, talk: Talk[R], *, message: Message | None = None, tls: ssl.SSLContext | None = None
    ) -> R:
        """Do what the dialogue asks for until it is through; whatever goes wrong ends the connection."""
        answer: Any = None
        fault: DialogueError | None = None
        try:
            while True:
                action = talk.throw(fault) if fault else talk.send(answer)
                fault = None
                try:
                    answer = await self._do(action, message, tls)
                except DialogueError as error:
                    fault = error
                    self.abort()
        except StopIteration as end:
            result: R = end.value
            return result
        except BaseException:
            self.abort()
            raise

    async def _do(
        self, action: Any, message: Message | None, tls: ssl.SSLContext | None
    ) -> RemoteReply | None:
        match action:
            case Say(data):
                self._say(data)
            case Hear(final=True):
                point("remote.dot")
                reply = await self._hear(self._timeouts.final)
                point("remote.answered")
                return reply
            case Hear():
                return await self._hear(self._timeouts.command)
            case Secure() if tls is not None:
                await self._secure(tls)
            case Pour() if message is not None:
                return await self._pour(message)
        return None

    def _say(self, data: bytes) -> None:
        # A reply to a command that was not given yet would be taken for the next one's.
        if not self._reader.empty:
            raise DialogueError("it spoke out of turn", "4.5.0")
        self._open().write(data)

    async def _hear(self, patience: float) -> RemoteReply:
        try:
            async with asyncio.timeout(patience):
                while (reply := self._reader.next()) is None:
                    if self._fault:
                        raise self._fault
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError as error:
            raise DialogueError("no reply in time") from error
        return reply

    async def _secure(self, tls: ssl.SSLContext) -> None:
        transport = self._open()
        # Plain bytes behind the reply would be read as if they had come under TLS (RFC 3207 section 5).
        if not self._reader.empty:
            raise DialogueError("it spoke before TLS began", "4.7.0")
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport,
                self,
                tls,
                server_hostname=self.target.host or None,
                ssl_handshake_timeout=self._timeouts.command,
            )
        except (OSError, ValueError) as error:
            raise TlsFailed(f"the TLS handshake failed: {error}", "4.7.5") from error
        if secured is None:
            raise TlsFailed("the connection was lost in the TLS handshake", "4.7.5")
        self._transport = secured

    async def _pour(self, message: Message) -> RemoteReply | None:
        """Send the content block by block; stop where the host answers before its end."""
        point("remote.content")
        blocks = encode_content(message.chunks())
        on_disk = isinstance(message.body, FileBody)
        if not on_disk:
            blocks = iter([b"".join(blocks)])
        try:
            while block := await asyncio.to_thread(next, blocks, b"") if on_disk else next(blocks, b""):
                if self._reader.replies:
                    return self._reader.next()
                await self._drain()
                self._open().write(block)
        except OSError as error:
            raise DialogueError("the message could not be read here", "4.3.0") from error
        return None

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._timeouts.command):
                await self._writable.wait()
        except TimeoutError as error:
            raise DialogueError("it takes no more content") from error

    def _open(self) -> asyncio.Transport:
        """Give the transport, or raise what ended it."""
        if self._fault:
            raise self._fault
        if self._transport is None or self._transport.is_closing():
            raise DialogueError("the connection was lost")
        return self._transport


def opportunistic_tls() -> ssl.SSLContext:
    """Give settings for TLS that beats none: any certificate will do, as plain text would (RFC 7435)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
