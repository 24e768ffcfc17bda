"""The envelope: MAIL and RCPT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.smtp import reply as replies
from gateway.smtp.parameters import MAIL_PARAMETERS, RCPT_PARAMETERS, Refused, check_utf8, parse_argument

if TYPE_CHECKING:
    from gateway.smtp.reply import Reply
    from gateway.smtp.server.connection import Connection


async def mail(connection: Connection, argument: str) -> Reply:
    """Begin a transaction."""
    strict = connection.strict
    if strict and connection.transaction is not None:
        raise Refused(replies.NESTED_MAIL, "sequence")
    sender, params = parse_argument(argument, "FROM", "5.1.7", MAIL_PARAMETERS, strict=strict)
    check_utf8(sender, params, strict=strict)
    if "REQUIRETLS" in params and not connection.session.tls:
        # It is offered under TLS only (RFC 8689 section 2).
        raise Refused(replies.UNKNOWN_PARAMETER, "parameter")
    if strict and "AUTH" in params and connection.server.listener.auth == "none":
        raise Refused(replies.UNKNOWN_PARAMETER, "parameter")
    if int(params.get("SIZE", 0)) > connection.message_size() > 0:
        raise Refused(replies.TOO_BIG, "message_size")
    connection.reset()
    connection.utf8 = "SMTPUTF8" in params
    transaction, decision = await connection.reception.mail(connection.session, sender, params)
    reply = connection.reply(decision, "mail", replies.SENDER_OK)
    connection.transaction, connection.recipients = transaction, 0
    if reply.refused:
        connection.reset()
    return reply


async def rcpt(connection: Connection, argument: str) -> Reply:
    """Add a recipient."""
    transaction = connection.begun()
    if connection.incoming:
        raise Refused(replies.CHUNKS_BEGUN, "sequence")
    if connection.recipients >= connection.limits.recipients:
        connection.reception.refused(transaction, "limit", replies.TOO_MANY_RECIPIENTS, "recipients")
        return replies.TOO_MANY_RECIPIENTS
    address, params = parse_argument(argument, "TO", "5.1.3", RCPT_PARAMETERS, strict=connection.strict)
    if connection.strict and not address.local_part:
        raise Refused(replies.NULL_RECIPIENT, "syntax")
    check_utf8(address, transaction.params, strict=connection.strict)
    if not params.get("ORCPT", "").isascii() and "SMTPUTF8" not in transaction.params:
        raise Refused(replies.BAD_PARAMETER, "parameter")
    decision = await connection.reception.rcpt(transaction, address, params)
    reply = connection.reply(decision, "rcpt", replies.RECIPIENT_OK)
    connection.recipients += not reply.refused
    return reply
