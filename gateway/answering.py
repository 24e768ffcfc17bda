"""Asks the stages of reception for mail that another MTA owns: gives answers, and queues nothing.

The stages are those of SMTP but for `relay`: who may send where, the other MTA has decided. What is told is
`milter.answered`; whether a message was accepted in the end only that MTA knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.decision import Accept, Defer, Discard, Disconnect, Hold, Reject
from gateway.envelope import Recipient, Transaction, new_id
from gateway.events import about
from gateway.hookspecs import Stages
from gateway.reception import mark, record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.address import Address
    from gateway.decision import Decision
    from gateway.envelope import Client, Session
    from gateway.hookspecs import Hook
    from gateway.message import Message, Spool
    from gateway.reception import Reception

#: What a decision is called by milter.
_WORDS = {
    Accept: "accept",
    Reject: "reject",
    Defer: "tempfail",
    Disconnect: "shutdown",
    Discard: "discard",
    Hold: "quarantine",
}


class Answering:
    """A session's stages, asked in mail order; sessions and their chains are Reception's."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

    def open(self, listener: str, client: Client, local_ip: str) -> Session:
        """Begin the session of a client of the other MTA."""
        return self._reception.open(listener, "milter", client, local_ip)

    async def connect(self, session: Session) -> Decision | None:
        """Ask `connect`; limits on sessions are the other MTA's."""
        self._reception.opened(session)
        return await self._ask(session, Stages.connect, session)

    async def helo(self, session: Session, name: str) -> Decision | None:
        """Ask `helo`, and set the session's name. Which greeting it was, a milter is not told."""
        decision = await self._ask(session, Stages.helo, session, name)
        session.helo, session.extended = name, True
        return decision

    async def mail(
        self, session: Session, sender: Address, params: Mapping[str, str]
    ) -> tuple[Transaction, Decision | None]:
        """Begin a transaction and ask `mail`."""
        transaction = Transaction(new_id(), sender, "smtp", session, params=params)
        decision = await self._ask(session, Stages.mail, transaction)
        mark(transaction, decision)
        return transaction, decision

    async def rcpt(
        self, transaction: Transaction, address: Address, params: Mapping[str, str]
    ) -> Decision | None:
        """Ask `rcpt`; record the recipient when nobody refuses."""
        recipient = Recipient.of(address, params=params)
        decision = await self._ask(transaction.session, Stages.rcpt, transaction, recipient)
        if not isinstance(decision, Reject | Defer | Disconnect):
            record(transaction, recipient, decision)
        return decision

    async def data(self, transaction: Transaction) -> Decision | None:
        """Ask `data`."""
        decision = await self._ask(transaction.session, Stages.data, transaction)
        mark(transaction, decision)
        return decision

    def spool(self, transaction: Transaction) -> Spool:
        """Give the place for the bytes of this transaction's message."""
        return self._reception.spool(transaction)

    async def message(self, transaction: Transaction, message: Message) -> tuple[Message, Decision]:
        """Ask `incoming` and `message`; gives the message as they leave it, and what becomes of it."""
        chain = self._reception.chain_of(transaction.session)
        return await self._reception.judge(transaction, message, chain)

    def answered(
        self,
        of: Session | Transaction,
        stage: str,
        decision: Decision | None,
        *,
        recipient: str = "",
        queue_id: str = "",
        reply: str = "",
        edits: Sequence[str] = (),
    ) -> None:
        """Tell what the other MTA was answered."""
        transaction = of if isinstance(of, Transaction) else None
        session = of.session if isinstance(of, Transaction) else of
        told: dict[str, Any] = about(session)
        if transaction is not None:
            told |= {"message": transaction.id, "sender": transaction.sender}
        event = events.MilterAnswered(
            **told,
            stage=stage,
            answer=_WORDS[type(decision)] if decision else "continue",
            reason=getattr(decision, "reason", ""),
            reply=reply,
            recipient=recipient,
            queue_id=queue_id,
            edits=tuple(edits),
        )
        self._reception.chain_of(session).emit(event)

    def reset(self, transaction: Transaction) -> None:
        """The transaction ended without a message."""
        self._reception.reset(transaction)

    def disconnect(self, session: Session, reason: str) -> None:
        """The session is over."""
        self._reception.disconnect(session, reason)

    async def _ask(self, session: Session | None, hook: Hook[Any], *args: Any) -> Decision | None:
        said: Decision | None = (await self._reception.chain_of(session).ask(hook, *args)).value
        return said
