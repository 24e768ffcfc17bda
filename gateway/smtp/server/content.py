"""The content, by DATA or BDAT: on its way into the spool, and the reply that takes the duty to deliver."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import structlog

from gateway.errors import MessageTooBig, OutOfMemory
from gateway.smtp import reply as replies
from gateway.smtp.framing import Chunks, Content
from gateway.smtp.parameters import Refused
from gateway.smtp.reply import Reply
from gateway.smtp.server.connection import storage_fault
from gateway.smtp.server.frame import Gone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.envelope import Transaction
    from gateway.message import Message, Spool
    from gateway.smtp.framing import Text
    from gateway.smtp.server.connection import Connection

#: RFC 3030 section 2; twenty digits are more octets than there are.
_BDAT = re.compile(r"([0-9]{1,20})( +LAST)? *", re.IGNORECASE)
#: For so many seconds of waiting nobody is too slow.
PATIENCE = 30.0
_log = structlog.get_logger("gateway.smtp")


class Incoming:
    """One message as it comes. What is wrong with it is told at its end, so that the client stays in step."""

    def __init__(self, connection: Connection, text: Text) -> None:
        self.text = text
        self.pace = Pace(connection)
        self._connection = connection
        self.spool: Spool = connection.reception.spool(connection.begun())
        # RFC 1870 counts what is on the wire; the spool has the limit, too, and counts what it stores.
        self._room = (connection.message_size() if connection.strict else 0) or math.inf
        self._hops = connection.limits.hops
        self._fault: tuple[Reply, str] | None = None

    def store(self, text: bytes) -> None:
        """Write to the spool while nothing is wrong."""
        if not text or self._fault or self.text.octets > self._room:
            return
        try:
            self.spool.write(text)
        except MessageTooBig:
            self._fault = replies.TOO_BIG, "message_size"
        except OutOfMemory:
            self._connection.reception.refused(self._connection.session, "limit", replies.NO_MEMORY, "memory")
            self._fault = replies.NO_MEMORY, "memory"
        except OSError as error:
            _log.warning("smtp.spool_failed", error=str(error))
            self._fault = storage_fault(error), "storage"

    def refusal(self) -> tuple[Reply, str] | None:
        """Give what is wrong with what has come so far."""
        if self.text.malformed:
            return replies.MALFORMED_MESSAGE, "malformed"
        if self.text.hops >= self._hops:
            return replies.TOO_MANY_HOPS, "hops"
        return (replies.TOO_BIG, "message_size") if self.text.octets > self._room else self._fault


class Pace:
    """How fast the content of one message comes, with the waits between its chunks, without our own time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._began = connection.waited
        self._octets = 0

    def count(self, octets: int) -> None:
        """Count what has come, and send away who gives it too slowly. Raises Gone."""
        connection = self._connection
        self._octets += octets
        waited = connection.waited - self._began
        if waited > PATIENCE and self._octets < waited * connection.limits.data_rate:
            connection.reception.refused(connection.session, "limit", replies.TOO_SLOW, "data_rate")
            connection.dismiss(replies.TOO_SLOW, "limit")
            raise Gone


async def data(connection: Connection, _: str) -> Reply:
    """Take a message that ends with a dot."""
    if connection.incoming:
        raise Refused(replies.CHUNKS_BEGUN, "sequence")
    if not connection.recipients:
        raise Refused(replies.NO_RECIPIENT, "sequence")
    try:
        refusal = await _ask(connection)
        if refusal is not None:
            return refusal
        content = Content(normalise=_normalises(connection))
        incoming = connection.incoming = Incoming(connection, content)
        connection.say(replies.GO_AHEAD)
        await _until_the_dot(connection, incoming, content)
        return await _end(connection, incoming)
    finally:
        connection.reset()


async def bdat(connection: Connection, argument: str) -> Reply:
    """Take a chunk, the last one or another (RFC 3030). Whatever is refused is read first."""
    match = _BDAT.fullmatch(argument)
    if match is None:
        # What follows cannot be told from commands any more.
        connection.reason = "disconnected"
        raise Refused(replies.BAD_CHUNK, "syntax")
    size, last = int(match[1]), bool(match[2])
    try:
        refusal = await _begin_chunks(connection)
    except Exception:
        await _pour(connection, None, size)
        connection.reset()
        raise
    incoming = connection.incoming
    await _pour(connection, incoming, size)
    if refusal is not None or incoming is None:
        connection.reset()
        return refusal or replies.NO_MAIL
    return await _chunk_ended(connection, incoming, size, last=last)


async def _begin_chunks(connection: Connection) -> Reply | None:
    """Make ready for the first chunk; give the refusal of a policy."""
    connection.begun()
    if not connection.recipients:
        raise Refused(replies.NO_RECIPIENT, "sequence")
    if connection.incoming is None:
        refusal = await _ask(connection)
        if refusal is not None:
            return refusal
        connection.incoming = Incoming(connection, Chunks(normalise=_normalises(connection)))
    return None


async def _chunk_ended(connection: Connection, incoming: Incoming, size: int, *, last: bool) -> Reply:
    if not last:
        refusal = incoming.refusal()
        if refusal is None:
            return Reply(250, "2.0.0", f"{size} octets taken")
        # One reply even by LMTP: only the last chunk has one for each recipient.
        refused = connection.refuse("message", *refusal)
        connection.reset()
        return refused
    try:
        incoming.store(incoming.text.finish())
        return await _end(connection, incoming)
    finally:
        connection.reset()


async def _ask(connection: Connection) -> Reply | None:
    """Ask the stage `data`; give its refusal."""
    decision = await connection.reception.data(connection.begun())
    reply = connection.reply(decision, "data", replies.GO_AHEAD)
    return reply if reply.refused else None


def _normalises(connection: Connection) -> bool:
    return connection.limits.bare_newlines == "normalise"


async def _until_the_dot(connection: Connection, incoming: Incoming, content: Content) -> None:
    """Read to the end of the content, in bounded memory whatever comes."""
    block = connection.lines.rest()
    connection.in_message = True
    try:
        while True:
            incoming.store(content.feed(block))
            if content.ended:
                break
            block = await connection.read()
            incoming.pace.count(len(block))
    finally:
        connection.in_message = False
    connection.lines.feed(content.rest)


async def _pour(connection: Connection, incoming: Incoming | None, size: int) -> None:
    """Read so many octets, not one more or less; without `incoming` they are dropped."""
    pace = incoming.pace if incoming else Pace(connection)
    connection.in_message = True
    try:
        while size:
            block = connection.lines.some(size)
            if not block:
                connection.lines.feed(await connection.read())
                continue
            pace.count(len(block))
            size -= len(block)
            if incoming:
                incoming.store(incoming.text.feed(block))
    finally:
        connection.in_message = False


async def _end(connection: Connection, incoming: Incoming) -> Reply:
    """Answer for the whole message: a refusal, or the duty to deliver."""
    transaction = connection.begun()
    refusal = incoming.refusal()
    if refusal is not None:
        return _refused(connection, refusal)
    said = await _taken(connection, transaction, incoming.spool.finish())
    if not all(one.refused for one in said):
        connection.transaction = None
    return _last_of(connection, said)


async def _taken(connection: Connection, transaction: Transaction, message: Message) -> list[Reply]:
    """Ask for the last word: one reply, or by LMTP one for each recipient."""
    taken = Reply(250, "2.0.0", f"queued as {transaction.id}")
    if connection.session.protocol == "lmtp":
        decisions = await connection.reception.message_for_each(transaction, message)
    else:
        decisions = [await connection.reception.message(transaction, message)]
    return [connection.reply(one, "message", taken) for one in decisions]


def _refused(connection: Connection, refusal: tuple[Reply, str]) -> Reply:
    """Refuse the whole content; by LMTP each recipient hears it."""
    reply = connection.refuse("message", *refusal)
    many = connection.recipients if connection.session.protocol == "lmtp" else 1
    return _last_of(connection, [reply] * many)


def _last_of(connection: Connection, said: Sequence[Reply]) -> Reply:
    """Say all replies but the last, which is the command's."""
    for reply in said[:-1]:
        connection.say(reply)
    return said[-1]
