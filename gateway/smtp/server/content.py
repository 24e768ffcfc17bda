"""The content: DATA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog

from gateway.errors import MessageTooBig
from gateway.smtp import reply as replies
from gateway.smtp.framing import Content
from gateway.smtp.parameters import Refused
from gateway.smtp.reply import Reply
from gateway.smtp.server.connection import storage_fault

if TYPE_CHECKING:
    from gateway.envelope import Transaction
    from gateway.message import Spool
    from gateway.smtp.server.connection import Connection

_log = structlog.get_logger("gateway.smtp")


async def data(connection: Connection, _: str) -> Reply:
    """Take a message."""
    transaction = connection.begun()
    if not connection.recipients:
        raise Refused(replies.NO_RECIPIENT, "sequence")
    try:
        reply = await _take(connection, transaction)
        if not reply.refused:
            connection.transaction = None
        return reply
    finally:
        connection.reset()


async def _take(connection: Connection, transaction: Transaction) -> Reply:
    """Take the content, and with it the duty to deliver."""
    reply = connection.reply(await connection.reception.data(transaction), "data", replies.GO_AHEAD)
    if reply.refused:
        return reply
    spool = connection.reception.spool(transaction)
    try:
        connection.say(reply)
        refusal = await _receive(connection, spool)
        if refusal is not None:
            return connection.refuse("message", *refusal)
        message = spool.finish()
    finally:
        spool.discard()
    decision = await connection.reception.message(transaction, message)
    return connection.reply(decision, "message", Reply(250, "2.0.0", f"queued as {transaction.id}"))


async def _receive(connection: Connection, spool: Spool) -> tuple[Reply, str] | None:
    """Read to the end of the content, in bounded memory whatever comes; give what is wrong with it."""
    limits = connection.limits
    content = Content(normalise=limits.bare_newlines == "normalise")
    # RFC 1870 counts what is on the wire; the spool has the limit, too, and counts what it stores.
    room = (connection.message_size() if connection.strict else 0) or math.inf
    fault, block = None, connection.lines.rest()
    connection.in_message = True
    try:
        while True:
            text = content.feed(block)
            if text and not fault and content.octets <= room:
                fault = _store(spool, text)
            if content.ended:
                break
            block = await connection.read()
    finally:
        connection.in_message = False
    connection.lines.feed(content.rest)
    if content.malformed:
        return replies.MALFORMED_MESSAGE, "malformed"
    if content.hops >= limits.hops:
        return replies.TOO_MANY_HOPS, "hops"
    return (replies.TOO_BIG, "message_size") if content.octets > room else fault


def _store(spool: Spool, text: bytes) -> tuple[Reply, str] | None:
    """Write to the spool; give what went wrong, so that the rest of the content can be read first."""
    try:
        spool.write(text)
    except MessageTooBig:
        return replies.TOO_BIG, "message_size"
    except OSError as error:
        _log.warning("smtp.spool_failed", error=str(error))
        return storage_fault(error), "storage"
    return None
