"""One message as an MTA shows it by milter, and what to tell the MTA of the changes that plugins made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from gateway.decision import Defer, Reject
from gateway.errors import MessageTooBig, MilterError
from gateway.message import FileBody
from gateway.milter import packets
from gateway.milter.content import Unwired, body_of, wired
from gateway.milter.edits import header_edits, join_field, split_fields
from gateway.milter.facts import path_of
from gateway.milter.packets import Actions, Steps
from gateway.milter.states import NEEDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.address import Address
    from gateway.decision import Decision
    from gateway.envelope import Transaction
    from gateway.message import Message, Spool
    from gateway.milter.packets import Edit

#: Bytes and fields that the header of one message may have.
HEADER_SIZE, HEADER_FIELDS = 1024 * 1024, 10_000
_TOO_BIG = Reject("5.3.4", "the message is too big", reason="message_size")
_NO_ROOM = Defer("4.3.1", "no room for the message, try again later", reason="storage")
_log = structlog.get_logger("gateway.milter")


class Incoming:
    """The message of one transaction: its envelope as the MTA has it, and its content as it comes."""

    def __init__(self, transaction: Transaction, steps: Steps, actions: Actions) -> None:
        self.transaction = transaction
        self._leading_space = Steps.LEADING_SPACE in steps
        self._actions = actions
        self._sender = transaction.sender
        #: Address -> as the MTA wrote it, by which it can be taken back.
        self._recipients: dict[Address, bytes] = {}
        self._fields: list[bytes] = []
        self._header_size = 0
        self._spool: Spool | None = None
        self._unwired = Unwired()
        self._came: Message | None = None
        #: Why the content cannot be taken; the answer waits until it has all come.
        self.fault: Decision | None = None

    def take_recipient(self, address: Address, path: bytes) -> None:
        """Note a recipient that the MTA now has."""
        self._recipients[address] = path

    def take_header(self, name: bytes, value: bytes) -> None:
        """Take a header field. Raises MilterError."""
        if b":" in name or b"\n" in name:
            raise MilterError(f"{name[:80]!r} is not the name of a header field")
        field = join_field(name, value, leading_space=self._leading_space)
        self._header_size += len(field)
        if self._header_size > HEADER_SIZE or len(self._fields) >= HEADER_FIELDS:
            self.fault = _TOO_BIG
        else:
            self._fields.append(field)

    def begin_body(self, spool: Spool) -> None:
        """The header is over."""
        self._spool = spool
        self._write(b"".join(self._fields) + b"\n")

    def take_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._write(self._unwired.feed(data))

    def _write(self, data: bytes) -> None:
        if self.fault is not None or self._spool is None:
            return
        try:
            self._spool.write(data)
        except MessageTooBig:
            self.fault = _TOO_BIG
        except OSError as error:
            _log.warning("milter.spool_failed", error=str(error))
            self.fault = _NO_ROOM

    def finish(self) -> Message | None:
        """Give the message; None when there is a fault."""
        self._write(self._unwired.rest())
        if self.fault is not None or self._spool is None:
            return None
        message = self._spool.finish()
        self._came = message.copy()
        return message

    def drop(self, *messages: Message) -> None:
        """Remove the files of the content: what is answered is the MTA's again."""
        if self._spool is not None:
            self._spool.discard()
        for message in (*messages, *([self._came] if self._came else [])):
            if isinstance(message.body, FileBody):
                message.body.path.unlink(missing_ok=True)

    def edits(self, message: Message) -> Iterator[Edit]:
        """Say what plugins have changed, the body last and in pieces.

        Raises MilterError when the MTA does not take such a change.
        """
        for edit in [*self._envelope_edits(), *self._header_edits(message)]:
            self._check(edit)
            yield edit
        if self._came is None or message.body is self._came.body:
            return
        self._check(packets.ReplaceBody(b""))
        yield packets.ReplaceBody(b"")
        for piece in wired(body_of(message)):
            yield packets.ReplaceBody(piece)

    def _check(self, edit: Edit) -> None:
        if NEEDS[type(edit)] & ~self._actions:
            raise MilterError(f"the MTA does not take {type(edit).__name__}")

    def _envelope_edits(self) -> Iterator[Edit]:
        transaction = self.transaction
        if transaction.sender != self._sender:
            yield packets.ChangeSender(path_of(transaction.sender))
        wanted = dict.fromkeys(one.address for one in transaction.recipients if not one.discarded)
        for address, path in self._recipients.items():
            if address not in wanted:
                yield packets.DeleteRecipient(path)
        for address in wanted:
            if address not in self._recipients:
                yield packets.AddRecipient(path_of(address))

    def _header_edits(self, message: Message) -> list[Edit]:
        if self._came is None:
            return []
        before, after = split_fields(self._came.header), split_fields(message.header)
        return [*header_edits(before, after, leading_space=self._leading_space)]


def describe(edit: Edit) -> str:
    """Say an edit in words, for the event."""
    if isinstance(edit, packets.ChangeHeader) and not edit.value:
        return f"delete header {edit.name.decode('ascii', 'replace')}"
    words = _WORDS[type(edit)]
    subject: bytes = getattr(edit, "name", b"") or getattr(edit, "address", b"")
    return f"{words} {subject.decode('utf-8', 'replace')}".rstrip()


_WORDS: dict[type[packets.Packet], str] = {
    packets.AddHeader: "add header",
    packets.InsertHeader: "insert header",
    packets.ChangeHeader: "change header",
    packets.ReplaceBody: "replace body",
    packets.AddRecipient: "add recipient",
    packets.DeleteRecipient: "delete recipient",
    packets.ChangeSender: "change sender",
}
