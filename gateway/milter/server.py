"""The milter server: Postfix or Sendmail asks by milter, and hears what the stages of reception say.

One connection is one SMTP session of the MTA. It knows the protocol and no policy: Answering asks the stages.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from gateway.chain import FAULT
from gateway.decision import Accept, Decision, Defer, Discard, Disconnect, Hold, Reject
from gateway.errors import AddressError, MilterError
from gateway.milter import packets
from gateway.milter.facts import (
    WANTED_LISTS,
    Facts,
    address_of,
    client_of,
    params_of,
    plain_ip,
    text,
    tls_of,
)
from gateway.milter.incoming import Incoming, describe
from gateway.milter.packets import Actions, Steps
from gateway.milter.states import IN_MAIL, SWITCHES, State, accept_offer, after
from gateway.milter.wire import COMMANDS, LARGEST, Decoder, data_of, encode
from gateway.server import Server as AnyServer
from gateway.smtp.reply import Reply, answer, closes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.answering import Answering
    from gateway.envelope import Session, Transaction
    from gateway.message import Message
    from gateway.milter.packets import Packet
    from gateway.settings import Limits

    Act = Callable[["Connection", Any], Awaitable[Packet | None]]

#: Bytes asked of the socket at a time.
BLOCK = 64 * 1024
#: While plugins think, the MTA hears every so many seconds that it should wait on.
PROGRESS = 10.0
_OK = Reply(250, "2.0.0", "ok")
_REFUSALS = (Reject, Defer, Disconnect)
_log = structlog.get_logger("gateway.milter")


class Server(AnyServer["Connection"]):
    """Serves milter on a listener."""

    def __init__(
        self, answering: Answering, limits: Limits, listener_name: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(limits, loop)
        self.answering = answering
        self.listener_name = listener_name

    def __call__(self) -> asyncio.StreamReaderProtocol:
        """Make the protocol object of a new connection."""
        reader = asyncio.StreamReader(limit=BLOCK, loop=self.loop)
        return asyncio.StreamReaderProtocol(reader, self._serve, loop=self.loop)

    def dismiss(self, connection: Connection) -> None:
        """End a connection once its message has its answer."""
        connection.dismiss()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closing or len(self.connections) >= self.limits.sessions:
            writer.close()
            return
        connection = Connection(self, reader, writer)
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.forget(connection)


class Connection:
    """One MTA's connection. Its task is cancelled only while it waits for the MTA."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._answering = server.answering
        self._reader, self._writer = reader, writer
        self._task = asyncio.current_task()
        self._decoder = Decoder(COMMANDS)
        self._state = State.NEW
        self._steps, self._actions = Steps(0), Actions(0)
        self._facts = Facts()
        self._session: Session | None = None
        self._mail: Incoming | None = None
        #: A plugin has ended the session: whatever comes is answered with this.
        self._farewell: Packet | None = None
        self._waiting = False

    async def run(self) -> None:
        """Talk until one side ends it."""
        reason = "quit"
        try:
            while self._state is not State.OVER:
                packet = await self._next()
                if packet is None:
                    reason = "shutdown" if self._server.closing else "lost"
                    break
                await self._obey(packet)
        except MilterError as error:
            reason = "protocol_error"
            _log.warning("milter.protocol_error", listener=self._server.listener_name, error=str(error))
        except OSError as error:
            reason = "timeout" if isinstance(error, TimeoutError) else "lost"
        finally:
            self._end(reason)
            self._writer.close()

    def dismiss(self) -> None:
        """End the connection as soon as no message is under way."""
        if self._waiting and self._state not in IN_MAIL and self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Cut the MTA off."""
        self._writer.transport.abort()

    async def _next(self) -> Packet | None:
        """Wait for the next packet; None when the MTA is gone, or is to go."""
        while (packet := self._decoder.next_packet()) is None:
            if self._server.closing and self._state not in IN_MAIL:
                return None
            self._waiting = True
            try:
                async with asyncio.timeout(self._server.limits.session):
                    data = await self._reader.read(BLOCK)
            except asyncio.CancelledError:
                if self._server.closing:
                    return None
                raise
            finally:
                self._waiting = False
            if not data:
                return None
            self._decoder.receive(data)
        return packet

    async def _obey(self, packet: Packet) -> None:
        """Do one command, and answer it if it is one that is answered."""
        if isinstance(packet, packets.Macros):
            self._facts.keep(packet)
            return
        self._state, ended = after(self._state, packet)
        if ended:
            self._reset()
        act = _ACTS.get(type(packet))
        if act is None:
            return
        said = await self._act(act, packet)
        switches = SWITCHES.get(type(packet))
        if said is not None and not (switches and self._steps & switches[1]):
            await self._say(said)

    async def _act(self, act: Act, packet: Packet) -> Packet | None:
        """Run a command; whatever it raises, the MTA hears a plain refusal and the log the rest."""
        waiting = _Waiting(self._server.loop, self._writer)
        try:
            return await act(self, packet)
        except (MilterError, OSError):
            raise
        except Exception:  # noqa: BLE001 - a fault of ours never is the MTA's
            _log.exception("milter.command_failed", command=type(packet).__name__)
            if self._mail is not None and self._state in IN_MAIL:
                self._mail.fault = FAULT
            return self._refusal(FAULT, "message")
        finally:
            waiting.stop()

    # The commands, as the table at the end names them

    async def negotiate(self, offer: packets.Negotiate) -> Packet:
        """Agree on what is said and done."""
        agreed = accept_offer(offer, WANTED_LISTS)
        self._steps, self._actions = Steps(agreed.steps), Actions(agreed.actions)
        return agreed

    async def connect(self, packet: packets.Connect) -> Packet:
        """Begin a session."""
        client = client_of(packet, self._facts)
        here = plain_ip(self._facts.get("daemon_addr"))
        self._session = self._answering.open(self._server.listener_name, client, here)
        self._note(self._session)
        return self._answer(self._session, "connect", await self._answering.connect(self._session))

    async def helo(self, packet: packets.Helo) -> Packet:
        """Take the client's name, and whether there is TLS."""
        session = self._opened()
        self._note(session)
        session.tls = tls_of(self._facts)
        if self._farewell:
            return self._farewell
        return self._answer(session, "helo", await self._answering.helo(session, text(packet.name)))

    async def mail(self, packet: packets.Mail) -> Packet:
        """Begin a transaction."""
        session = self._opened()
        self._note(session)
        session.user, session.auth = self._facts.get("auth_authen"), self._facts.get("auth_type")
        if self._farewell:
            return self._over(self._farewell)
        try:
            sender = address_of(packet.address)
        except AddressError as error:
            return self._over(self._answer(session, "mail", Reject("5.1.7", str(error), reason="syntax")))
        transaction, decision = await self._answering.mail(session, sender, params_of(packet.arguments))
        self._mail = Incoming(transaction, self._steps, self._actions)
        return self._answer(transaction, "mail", decision)

    async def rcpt(self, packet: packets.Rcpt) -> Packet:
        """Add a recipient."""
        mail = self._begun()
        self._note(self._opened())
        if self._farewell:
            return self._farewell
        decision: Decision | None
        recipient = text(packet.address).strip("<>")
        try:
            address = address_of(packet.address)
        except AddressError as error:
            decision = Reject("5.1.3", str(error), reason="syntax")
        else:
            decision = await self._answering.rcpt(mail.transaction, address, params_of(packet.arguments))
            recipient = address
            if not isinstance(decision, _REFUSALS):
                mail.take_recipient(address, packet.address)
        return self._answer(mail.transaction, "rcpt", decision, recipient)

    async def data(self, _: packets.Data) -> Packet:
        """The recipients are complete."""
        mail = self._begun()
        self._note(self._opened())
        if self._farewell:
            return self._over(self._farewell)
        return self._answer(mail.transaction, "data", await self._answering.data(mail.transaction))

    async def header(self, packet: packets.Header) -> Packet:
        """Take a header field."""
        self._begun().take_header(packet.name, packet.value)
        return packets.Continue()

    async def end_of_headers(self, _: packets.EndOfHeaders) -> Packet:
        """Begin the body."""
        mail = self._begun()
        mail.begin_body(self._answering.spool(mail.transaction))
        return packets.Continue()

    async def body(self, packet: packets.Body) -> Packet:
        """Take a piece of the body."""
        self._begun().take_body(packet.content)
        return packets.Continue()

    async def end_of_message(self, packet: packets.EndOfMessage) -> Packet:
        """Say what is to become of the message, and what is to be changed in it."""
        mail, self._mail = self._begun(), None
        self._note(self._opened())
        mail.take_body(packet.content)
        try:
            return await self._judge(mail)
        finally:
            mail.drop()

    async def _judge(self, mail: Incoming) -> Packet:
        transaction, message = mail.transaction, mail.finish()
        if message is None or self._farewell:
            self._answering.reset(transaction)
            return self._farewell or self._answer(transaction, "message", mail.fault or FAULT)
        message, decision = await self._answering.message(transaction, message)
        edits: list[str] = []
        if isinstance(decision, _REFUSALS):
            self._answering.reset(transaction)
        elif not isinstance(decision, Discard):
            try:
                edits = await self._edit(mail, message)
            except MilterError as error:
                _log.error("milter.edit_failed", message=transaction.id, error=str(error))
                decision = FAULT
            finally:
                mail.drop(message)
        if isinstance(decision, Accept | Hold) and (held := _held(transaction)):
            decision = Hold(held)
            await self._say(packets.Quarantine(_one_line(held)))
        return self._answer(transaction, "message", decision, edits=edits)

    async def _edit(self, mail: Incoming, message: Message) -> list[str]:
        """Tell the MTA what to change; gives it in words."""
        told: list[str] = []
        for edit in mail.edits(message):
            if len(data_of(edit)) > LARGEST:
                raise MilterError(f"{describe(edit)}: larger than a packet")
            await self._say(edit)
            told.append(describe(edit))
        return list(dict.fromkeys(told))

    async def next_session(self, _: packets.QuitForNext) -> None:
        """Another session follows on this connection."""
        self._end("quit")
        self._facts, self._farewell = Facts(), None

    # What they share

    async def _say(self, packet: Packet) -> None:
        """Send a packet. Raises OSError when the MTA is gone; uvloop's own error would be none."""
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(encode(packet))
        await self._writer.drain()

    def _answer(
        self,
        of: Session | Transaction,
        stage: str,
        decision: Decision | None,
        recipient: str = "",
        edits: Sequence[str] = (),
    ) -> Packet:
        """Turn a decision into the answer, and tell it."""
        said = self._refusal(decision, stage)
        refused = isinstance(decision, _REFUSALS)
        if refused or stage in ("mail", "rcpt", "message"):
            self._answering.answered(
                of,
                stage,
                decision,
                recipient=recipient,
                queue_id=self._facts.get("i"),
                reply=str(answer(decision, stage, _OK)) if refused else "",
                edits=edits,
            )
        if closes(decision, stage):
            self._farewell = said
        if stage == "message":
            return said
        return self._over(said) if refused and stage in ("mail", "data") else said

    def _refusal(self, decision: Decision | None, stage: str) -> Packet:
        """Give the packet of a decision; marks for later (Hold, Discard) are acted on at the end."""
        if isinstance(decision, _REFUSALS):
            wire = answer(decision, stage, _OK).wire()
            return packets.ReplyCode(wire.removesuffix(b"\r\n").replace(b"%", b"%%"))
        if stage != "message":
            return packets.Continue()
        return packets.Discard() if isinstance(decision, Discard) else packets.Accept()

    def _over(self, said: Packet) -> Packet:
        """End the transaction: the MTA shows no more of it."""
        self._state = State.IDLE
        self._reset()
        return said

    def _reset(self) -> None:
        if self._mail is not None:
            mail, self._mail = self._mail, None
            mail.drop()
            self._answering.reset(mail.transaction)

    def _end(self, reason: str) -> None:
        self._reset()
        if self._session is not None:
            session, self._session = self._session, None
            self._answering.disconnect(session, reason)

    def _note(self, session: Session) -> None:
        """Let plugins see all that the MTA has told: `session.notes["milter"]`."""
        session.notes["milter"] = self._facts.all()

    def _opened(self) -> Session:
        if self._session is None:
            raise MilterError("no client was told of")
        return self._session

    def _begun(self) -> Incoming:
        if self._mail is None:
            raise MilterError("no sender was told of")
        return self._mail


class _Waiting:
    """Tells the MTA every PROGRESS seconds that an answer is on its way."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: asyncio.StreamWriter) -> None:
        self._loop, self._writer = loop, writer
        self._handle = loop.call_later(PROGRESS, self._tell)

    def _tell(self) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(encode(packets.Progress()))
        self._handle = self._loop.call_later(PROGRESS, self._tell)

    def stop(self) -> None:
        """The answer is there."""
        self._handle.cancel()


def _held(transaction: Transaction) -> str:
    """Say why to hold; an MTA holds a message for all its recipients or for none."""
    return transaction.held or next((one.held for one in transaction.recipients if one.held), "")


def _one_line(reason: str) -> bytes:
    return " ".join(reason.replace("\0", " ").split())[:500].encode("utf-8", "replace")


_ACTS: dict[type[packets.Packet], Act] = {
    packets.Negotiate: Connection.negotiate,
    packets.Connect: Connection.connect,
    packets.Helo: Connection.helo,
    packets.Mail: Connection.mail,
    packets.Rcpt: Connection.rcpt,
    packets.Data: Connection.data,
    packets.Header: Connection.header,
    packets.EndOfHeaders: Connection.end_of_headers,
    packets.Body: Connection.body,
    packets.EndOfMessage: Connection.end_of_message,
    packets.QuitForNext: Connection.next_session,
}
