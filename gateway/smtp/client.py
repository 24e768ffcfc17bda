"""The client's side of an SMTP connection on asyncio: time limits, TLS, flow control.

What is said, and what the answers mean, is in dialogue.py.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any, cast

from gateway.errors import DialogueError, TlsFailed, Unreachable
from gateway.faultpoint import point
from gateway.message import FileBody
from gateway.smtp.client_tls import described, failure, shown
from gateway.smtp.dialogue import Dialogue
from gateway.smtp.talk import Hear, Pour, Say, Secure
from gateway.smtp.wire import RemoteReply, ReplyReader, encode_content

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from typing import TypeVar

    from gateway.message import Message
    from gateway.smtp.client_tls import Terms
    from gateway.smtp.talk import Envelope, Login, Talk, Verdict
    from gateway.smtp.target import Target, Timeouts

    R = TypeVar("R")


class Connection(asyncio.Protocol):
    """One connection to a mail host, good for several messages. Made by `connect`."""

    def __init__(self, target: Target, helo: str, timeouts: Timeouts) -> None:
        self.target = target
        #: Messages that were offered on it.
        self.offered = 0
        #: Version and cipher of TLS, "" in plain.
        self.tls = "", ""
        #: The address that we speak from.
        self.source = ""
        self._dialogue = Dialogue(helo, lmtp=target.lmtp)
        self._timeouts = timeouts
        self._reader = ReplyReader()
        self._transport: asyncio.Transport | None = None
        self._fault: DialogueError | None = None
        self._heard = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def connect(
        cls,
        target: Target,
        helo: str,
        timeouts: Timeouts,
        terms: Terms | None = None,
        login: Login | None = None,
        sources: Sequence[str] = (),
    ) -> Connection:
        """Connect and go on to where MAIL may come: with TLS by these terms, and logged in.

        We connect from the first of `sources` that is of the target's family, if any is. Raises TlsFailed
        when TLS is not what the terms ask for, and DialogueError when this address will not do now.
        """
        connection = cls(target, helo, timeouts)
        await connection._reach(sources)
        security = terms.security if terms else "none"
        try:
            await connection._run(connection._dialogue.begin(security, login), terms=terms)
        except TlsFailed as error:
            error.source = connection.source
            raise
        return connection

    @property
    def reusable(self) -> bool:
        """Another message may be sent: nothing is lost, pending or out of step."""
        return not self._fault and not self._dialogue.finished and self._reader.empty

    @property
    def secure(self) -> bool:
        """The connection is under TLS."""
        return self._dialogue.secure

    def offers(self, keyword: str) -> bool:
        """The host has named this extension."""
        return keyword in self._dialogue.extensions

    async def send(self, envelope: Envelope, message: Message) -> list[Verdict]:
        """Offer one message; gives a verdict for each recipient.

        Raises DialogueError only while the host has taken nothing: another address may be tried then.
        """
        self.offered += 1
        return await self._run(self._dialogue.transaction(envelope), message)

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

    async def _reach(self, sources: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await self._dial(sources)
        except TimeoutError as error:
            raise Unreachable("no connection in time", "4.4.1") from error
        except OSError as error:
            raise DialogueError(f"no connection: {error.strerror or error}", "4.4.1") from error

    async def _dial(self, sources: Sequence[str]) -> None:
        loop, target = asyncio.get_running_loop(), self.target
        if target.path:
            await loop.create_unix_connection(lambda: self, target.path)
            return
        family = ipaddress.ip_address(target.ip).version
        ours = next((one for one in sources if ipaddress.ip_address(one).version == family), None)
        await loop.create_connection(
            lambda: self, target.ip, target.port, local_addr=(ours, 0) if ours else None
        )
        self.source = self._open().get_extra_info("sockname")[0]

    async def _run(self, talk: Talk[R], message: Message | None = None, terms: Terms | None = None) -> R:
        """Do what the dialogue asks for until it is through; whatever goes wrong ends the connection."""
        answer: Any = None
        fault: DialogueError | None = None
        try:
            while True:
                action = talk.throw(fault) if fault else talk.send(answer)
                fault = None
                try:
                    answer = await self._do(action, message, terms)
                except DialogueError as error:
                    fault = error
                    self.abort()
        except StopIteration as end:
            result: R = end.value
            return result
        except BaseException:
            self.abort()
            raise

    async def _do(self, action: Any, message: Message | None, terms: Terms | None) -> RemoteReply | None:
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
            case Secure() if terms is not None:
                await self._secure(terms)
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

    async def _secure(self, terms: Terms) -> None:
        transport = self._open()
        # Plain bytes behind the reply would be read as if they had come under TLS (RFC 3207 section 5).
        if not self._reader.empty:
            raise DialogueError("it spoke before TLS began", "4.7.0")
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport,
                self,
                terms.context,
                server_hostname=terms.name or self.target.host or None,
                ssl_handshake_timeout=self._timeouts.command,
            )
        except (OSError, ValueError) as error:
            raise failure(error) from error
        if secured is None:
            raise TlsFailed("the connection was lost in the TLS handshake")
        self._transport = secured
        link: ssl.SSLObject = secured.get_extra_info("ssl_object")
        if terms.judge:
            terms.judge(shown(link))
        self.tls = described(link)

    async def _pour(self, message: Message) -> RemoteReply | None:
        """Send the content block by block; stop where the host answers before its end."""
        point("remote.content")
        blocks = encode_content(message.chunks())
        on_disk = isinstance(message.body, FileBody)
        try:
            if not on_disk:
                blocks = iter([b"".join(blocks)])
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
