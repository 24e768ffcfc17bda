"""The MTA's side: shows one message to a filter from beginning to end, and says what came of it.

A connection serves one message. The filter hears the whole session anew, with the facts of it, so nothing is
lost when it was restarted between two messages.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import MessageTooBig, MilterError
from gateway.message import Message, Spool
from gateway.milter import packets
from gateway.milter.content import Unwired, body_of, wired
from gateway.milter.edits import Fields
from gateway.milter.facts import path_of
from gateway.milter.packets import ALL_ACTIONS, ALL_STEPS, VERSION
from gateway.milter.states import Agreement
from gateway.milter.verdict import REFUSALS, Verdict, parse_reply
from gateway.milter.wire import ANSWERS, LARGEST, MACRO_STAGES, Decoder, data_of, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.endpoint import Endpoint
    from gateway.envelope import Recipient
    from gateway.milter.packets import Answer, Packet
    from gateway.milter.verdict import Mail

    #: Command -> the macros that go with it.
    MacrosOf = Mapping[type[Packet], Mapping[bytes, bytes]]

BLOCK = 64 * 1024
#: Edits of one message, and their bytes apart from a new body.
EDITS, EDIT_SIZE = 10_000, 4 * 1024 * 1024
#: A filter that says "wait on" is waited for so long, in seconds, and no longer.
PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds, a filter may take: to be reached, for a command, and for the content."""

    connect: float = 10.0
    command: float = 30.0
    content: float = 300.0


async def show(endpoint: Endpoint, patience: Patience, mail: Mail, macros: MacrosOf, spool: Spool) -> Verdict:
    """Show a message to the filter at `endpoint`; `spool` takes a new body. Raises MilterError."""
    try:
        async with asyncio.timeout(patience.connect):
            if endpoint.path:
                reader, writer = await asyncio.open_unix_connection(endpoint.path)
            else:
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError as error:
        raise MilterError(f"cannot be reached: {error.strerror or 'timed out'}") from error
    try:
        async with asyncio.timeout(PATIENCE):
            return await _Showing(reader, writer, patience, macros, spool).run(mail)
    except TimeoutError as error:
        raise MilterError("did not answer in time") from error
    except OSError as error:
        raise MilterError(f"was lost: {error.strerror or error}") from error
    finally:
        spool.discard()
        writer.close()


class _Showing:
    """One dialogue."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        patience: Patience,
        macros: MacrosOf,
        spool: Spool,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._patience = patience
        self._macros = macros
        self._spool = spool
        self._decoder = Decoder(ANSWERS)
        self._agreed: Agreement
        self._verdict = Verdict()
        self._skipped: set[type[Packet]] = set()

    async def run(self, mail: Mail) -> Verdict:
        """Go from the negotiation to the verdict."""
        await self._negotiate()
        over = await self._opening(mail) or await self._recipients(mail) or await self._content(mail)
        self._verdict.answer = over or await self._end()
        self._send(packets.Quit())
        return self._verdict

    async def _negotiate(self) -> None:
        self._send(packets.Negotiate(VERSION, ALL_ACTIONS, ALL_STEPS))
        answer = await self._read(self._patience.command)
        if not isinstance(answer, packets.Negotiate):
            raise MilterError(f"{type(answer).__name__} in answer to Negotiate")
        self._agreed = Agreement(answer)
        self._verdict.leading_space = self._agreed.leading_space

    async def _opening(self, mail: Mail) -> Packet | None:
        arguments = tuple(_argument(name, value) for name, value in mail.params.items())
        sender = packets.Mail(path_of(mail.sender), arguments)
        for command in (mail.connect, packets.Helo(mail.helo), sender):
            if over := await self._event(command):
                return over
        return None

    async def _recipients(self, mail: Mail) -> Packet | None:
        """Show the recipients; one that is refused leaves the others, unless it is the last."""
        for recipient in mail.recipients:
            path = path_of(recipient.address)
            over = await self._event(packets.Rcpt(path), {b"rcpt_addr": path[1:-1], **_mailer(recipient)})
            if isinstance(over, packets.Shutdown):
                return over
            if isinstance(over, REFUSALS):
                self._verdict.refused[recipient.address] = over
            elif over:
                return over
        if len(self._verdict.refused) == len({one.address for one in mail.recipients}):
            self._send(packets.Abort())
            return packets.Continue()
        return await self._event(packets.Data())

    async def _content(self, mail: Mail) -> Packet | None:
        shown = Fields(mail.message.header, mail.hidden, leading_space=self._agreed.leading_space).shown()
        for name, value in shown:
            if over := await self._event(packets.Header(name, value)):
                return over
        if over := await self._event(packets.EndOfHeaders()):
            return over
        for piece in wired(body_of(mail.message)):
            if over := await self._event(packets.Body(piece)):
                return over
            if packets.Body in self._skipped or not self._agreed.sends(packets.Body):
                break
        return None

    async def _event(self, command: Packet, more: Mapping[bytes, bytes] | None = None) -> Packet | None:
        """Show one thing; gives the answer that ends the message, or (of a recipient) refuses."""
        kind = type(command)
        if kind in self._skipped or not self._agreed.sends(kind):
            return None
        self._send(*self._macros_for(kind, more or {}), command)
        await self._writer.drain()
        if not self._agreed.answers(kind):
            return None
        waiting = self._patience.content if kind in _CONTENT else self._patience.command
        answer = await self._answer(kind, waiting)
        if isinstance(answer, packets.Skip):
            self._skipped.add(kind)
            return None
        return None if isinstance(answer, packets.Continue) else answer

    async def _end(self) -> Packet:
        """Take the edits, then the verdict."""
        self._send(*self._macros_for(packets.EndOfMessage, {}), packets.EndOfMessage())
        await self._writer.drain()
        unwired, size = Unwired(), 0
        while True:
            answer = await self._answer(packets.EndOfMessage, self._patience.content)
            if isinstance(answer, packets.ReplaceBody):
                self._replace(answer, unwired)
            elif isinstance(answer, packets.Edit):
                self._verdict.edits.append(answer)
                size += len(data_of(answer))
                if size > EDIT_SIZE or len(self._verdict.edits) > EDITS:
                    raise MilterError("changes too much of the message")
            else:
                break
        if self._verdict.body is not None:
            self._store(unwired.rest())
            self._verdict.body = self._spool.finish()
        return answer

    def _replace(self, piece: packets.ReplaceBody, unwired: Unwired) -> None:
        if self._verdict.body is None:
            self._verdict.body = Message(b"")
            self._store(b"\n")
        self._store(unwired.feed(piece.content))

    def _store(self, data: bytes) -> None:
        try:
            self._spool.write(data)
        except MessageTooBig as error:
            raise MilterError("makes the message too big") from error

    async def _answer(self, kind: type[Packet], waiting: float) -> Answer:
        """Wait for an answer; a Quarantine is none, and a Progress starts the time anew."""
        while True:
            answer: Answer = await self._read(waiting)
            self._agreed.check(kind, answer)
            if isinstance(answer, packets.Quarantine):
                self._verdict.held = answer.reason.decode("utf-8", "replace") or "held by a filter"
            elif not isinstance(answer, packets.Progress):
                if isinstance(answer, packets.ReplyCode):
                    parse_reply(answer.text)
                return answer

    async def _read(self, waiting: float) -> Any:
        while (packet := self._decoder.next_packet()) is None:
            async with asyncio.timeout(waiting):
                data = await self._reader.read(BLOCK)
            if not data:
                raise MilterError("closed the connection")
            self._decoder.receive(data)
        return packet

    def _send(self, *commands: Packet) -> None:
        for command in commands:
            if len(data_of(command)) > LARGEST:
                raise MilterError(f"takes no {_named(command)} of {len(data_of(command))} bytes")
            self._writer.write(encode(command))

    def _macros_for(self, kind: type[Packet], more: Mapping[bytes, bytes]) -> Iterator[packets.Macros]:
        """Give the macros of a command: those that the filter has asked for, else all that belong there."""
        known = {**self._macros.get(kind, {}), **more}
        if kind in MACRO_STAGES and MACRO_STAGES.index(kind) in self._agreed.macros:
            every = {**{k: v for one in self._macros.values() for k, v in one.items()}, **known}
            asked = self._agreed.macros[MACRO_STAGES.index(kind)]
            known = {name: every[name] for name in asked if name in every}
        if known:
            yield packets.Macros(kind.CODE, tuple(known.items()))


_CONTENT = {packets.Header, packets.EndOfHeaders, packets.Body, packets.EndOfMessage}


def _argument(name: str, value: str) -> bytes:
    return (f"{name}={value}" if value else name).encode("utf-8", "surrogateescape")


def _mailer(recipient: Recipient) -> dict[bytes, bytes]:
    return {
        b"rcpt_mailer": b"smtp",
        b"rcpt_host": recipient.address.domain.encode("utf-8", "surrogateescape"),
    }


def _named(command: Packet) -> str:
    name = getattr(command, "name", b"")
    return f"{type(command).__name__} {name[:80].decode('ascii', 'replace')}".rstrip()
