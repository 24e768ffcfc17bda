"""A session's commands one by one: looked up, checked, done, answered.

It knows the protocol and no policy: Reception says what is taken, and hears of the refusals that are made
here, so that each is an event.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

import structlog

from gateway.errors import QueueFull
from gateway.smtp import reply as replies
from gateway.smtp.framing import BadLine
from gateway.smtp.parameters import Refused
from gateway.smtp.reply import Reply, answer, closes
from gateway.smtp.server import tls
from gateway.smtp.server.frame import Frame, Gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.decision import Decision
    from gateway.envelope import Client, Transaction
    from gateway.smtp.server.content import Incoming
    from gateway.smtp.server.listening import Server

_BAD_LINES = {BadLine.TOO_LONG: replies.LINE_TOO_LONG, BadLine.MALFORMED: replies.MALFORMED_LINE}
#: Codes that a client that keeps to the protocol never gets; 503 it may, when it pipelines.
_BROKEN = {500, 501, 502, 555}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_log = structlog.get_logger("gateway.smtp")


class Command(NamedTuple):
    """One row of the command table: what must have been said before, the argument, and what it does."""

    #: "" nothing, "helo" a greeting, "client" also the TLS and AUTH that the listener demands, "mail" a
    #: transaction.
    needs: str
    #: Whether there must be one; None when it does not count.
    argument: bool | None
    #: It gives no reply when it has said all itself.
    act: Callable[[Connection, str], Awaitable[Reply | None]]


class Connection(Frame):
    """One client, as the verbs see it."""

    def __init__(self, server: Server, introduced: tuple[Client, str] | None = None) -> None:
        super().__init__(server, introduced)
        self.strict = self.limits.syntax == "strict"
        self.transaction: Transaction | None = None
        #: Recipients of the transaction that heard yes.
        self.recipients = 0
        #: The content that has begun to come.
        self.incoming: Incoming | None = None
        self._commands = self._errors = 0

    async def converse(self) -> None:
        """Greet, then do command after command."""
        tls.note(self)
        greeting = await self._try("connect", self.greet())
        if greeting is None or (greeting.refused and not self.reason):
            # The plugins could not be asked: nobody gets past them.
            greeting, self.reason = replies.NOT_READY, "error"
        self.say(greeting)
        while not self.reason:
            reply = await self._obey(await self.line())
            if reply is not None:
                self.say(reply)

    def over(self) -> None:
        """End the transaction and the session."""
        self.reset()
        self.reception.disconnect(self.session, self.reason or "lost")

    async def greet(self) -> Reply:
        """Ask `connect`, and say who we are."""
        word = "LMTP" if self.session.protocol == "lmtp" else "ESMTP"
        banner = Reply(220, "", f"{self.server.greeting} {word}")
        return self.reply(await self.reception.connect(self.session), "connect", banner)

    async def _obey(self, line: bytes | BadLine) -> Reply | None:
        self._commands += 1
        if self._commands > self.limits.commands:
            return self.cut(replies.TOO_MANY_COMMANDS, "commands")
        if isinstance(line, BadLine):
            reply = _BAD_LINES[line] if self.strict else replies.NOT_IMPLEMENTED
            return self.refuse("command", reply, line.value)
        verb, _, rest = line.partition(b" ")
        command = self.server.commands.get(verb.upper())
        if command is None:
            reply = replies.UNKNOWN_COMMAND if self.strict else replies.NOT_IMPLEMENTED
            return self.refuse("command", reply, "unknown_command")
        rest = rest.strip(b" ") if self.strict else rest.lstrip(b" ")
        argument = rest.decode("utf-8", "surrogateescape")
        stage = verb.decode().lower()
        refusal = self._check(command, argument)
        if refusal is not None:
            return self.refuse(stage, *refusal)
        return await self._try(stage, command.act(self, argument))

    def _check(self, command: Command, argument: str) -> tuple[Reply, str] | None:
        """Check what the command table asks for."""
        if command.needs and self.limits.helo_required and not self.session.helo:
            return replies.NO_HELO, "sequence"
        if command.needs == "mail" and self.transaction is None:
            return replies.NO_MAIL, "sequence"
        if command.needs == "client" and (wanting := self._wanting()):
            return wanting
        if self.strict and command.argument is not None and command.argument != bool(argument):
            return (replies.NEEDS_ARGUMENT if command.argument else replies.NO_ARGUMENT), "syntax"
        return None

    def _wanting(self) -> tuple[Reply, str] | None:
        """Say what the listener demands before MAIL and does not have yet."""
        listener, session = self.server.listener, self.session
        if listener.tls == "required" and not session.tls:
            return replies.NEEDS_TLS, "tls"
        if listener.auth == "required" and not session.user:
            return replies.NEEDS_AUTH, "auth"
        return None

    async def _try(self, stage: str, act: Awaitable[Reply | None]) -> Reply | None:
        """Run a command; whatever it raises, the client hears a plain reply and the log the rest."""
        try:
            return await act
        except Refused as refused:
            return self.refuse(stage, refused.reply, refused.reason)
        except Gone:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours never is the client's
            _log.exception("smtp.command_failed", session=self.session.id, stage=stage)
            return self.refuse(stage, storage_fault(error), "internal_error")

    def refuse(self, stage: str, reply: Reply, reason: str) -> Reply:
        """Tell a refusal that is the server's own, and count those that only broken clients get."""
        self.reception.refused(self.transaction or self.session, stage, reply, reason)
        self._errors += reply.code in _BROKEN
        if self._errors > self.limits.bad_commands:
            return self.cut(replies.TOO_MANY_ERRORS, "bad_commands")
        return reply

    def cut(self, reply: Reply, limit: str) -> Reply:
        """End the session behind this reply, for a limit that it went over."""
        self.reception.refused(self.session, "limit", reply, limit)
        self.reason = "limit"
        return reply

    def reply(self, decision: Decision | None, stage: str, accepted: Reply) -> Reply:
        """Turn a decision into the reply, and into the end of the session where it is one."""
        if closes(decision, stage):
            # This is the last word; nothing else is said behind it.
            self.reason, self.farewell = self.reason or "disconnected", None
        return answer(decision, stage, accepted)

    # What the commands share

    def reset(self) -> None:
        """End the transaction, if there is one, without a message."""
        if self.incoming is not None:
            self.incoming.spool.discard()
            self.incoming = None
        if self.transaction is not None:
            transaction, self.transaction = self.transaction, None
            self.reception.reset(transaction)

    def begun(self) -> Transaction:
        """Give the transaction; the command table has seen to it that there is one."""
        if self.transaction is None:
            raise Refused(replies.NO_MAIL, "sequence")
        return self.transaction

    def message_size(self) -> int:
        """Give the largest message that this client may send, 0 for any."""
        own = self.session.message_size
        return self.limits.message_size if own is None else own


def storage_fault(error: Exception) -> Reply:
    """Give the reply to a fault of ours: whether the disk is full is all that a client may know."""
    full = isinstance(error, QueueFull) or (isinstance(error, OSError) and error.errno in _NO_ROOM)
    return replies.DISK_FULL if full else replies.INTERNAL_ERROR
