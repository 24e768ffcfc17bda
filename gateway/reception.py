"""Takes mail in: asks the reception stages for any listener, and commits what they let through.

It knows no protocol: the edges (`smtp/server/`, `milter/server.py`) turn what it says into replies.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import events
from gateway.chain import FAULT
from gateway.decision import Accept, Defer, Discard, Disconnect, Hold, Reject
from gateway.envelope import Entry, EntryRecipient, Recipient, Session, Transaction, new_id
from gateway.errors import QueueError, QueueFull
from gateway.events import about
from gateway.faultpoint import point
from gateway.hookspecs import Stages
from gateway.message import FileBody, Memory, Spool
from gateway.plugin import stored
from gateway.queue.birth import described, told

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from gateway.address import Address
    from gateway.chain import Chain
    from gateway.decision import Decision
    from gateway.envelope import Client, Origin
    from gateway.message import Message
    from gateway.plugin import Services
    from gateway.queue import Queue
    from gateway.settings import Limits
    from gateway.smtp.reply import Reply

R = TypeVar("R")

#: From the mildest to the strictest; where recipients of one SMTP message differ, the strictest counts.
_STRICTNESS = (Defer, Reject, Disconnect)
_NO_RELAY = Reject("5.7.1", "relaying denied", reason="relay")
_REFUSALS = (Reject, Defer, Disconnect)
#: Where mail of a listener's protocol is born.
_ORIGINS: dict[str, Origin] = {"smtp": "smtp", "submission": "submission", "lmtp": "lmtp"}
#: The reason of a plugin that gives none: it must not be mistaken for no Hold.
_HELD = "held"


class Reception:
    """Asks the stages of reception. A session keeps the chain that it began with, over reloads."""

    def __init__(
        self,
        chain: Callable[[], Chain],
        queue: Queue,
        services: Services,
        limits: Callable[[], Limits],
        accepted: Callable[[], None],
    ) -> None:
        self._chain = chain
        self._queue = queue
        self._clock = services.clock
        self.counters = services.counters
        self._limits = limits
        self._accepted = accepted
        self._chains: dict[str, Chain] = {}
        self._slots: dict[str, list[str]] = {}
        self._barred: dict[str, Disconnect] = {}
        self._memory = Memory(lambda: self._limits().memory)
        self._commits: set[asyncio.Task[Any]] = set()

    def sessions(self, chain: Chain | None = None) -> int:
        """Count the open sessions: all, or those that use this chain."""
        return len(self._chains) if chain is None else sum(one is chain for one in self._chains.values())

    def open(self, listener: str, protocol: str, client: Client, local_ip: str) -> Session:
        """Begin a session."""
        session = Session(new_id(), listener, protocol, client, local_ip)
        self._chains[session.id] = self._chain()
        return session

    def opened(self, session: Session) -> None:
        """Tell who has connected."""
        client = session.client
        told: dict[str, Any] = {"client_name": client.name, "client_port": client.port}
        self._emit(session, events.SessionOpened(**about(session), protocol=session.protocol, **told))

    async def renew(self, session: Session, client: Client, local_ip: str) -> Session:
        """End a session, and begin the one of a client that it speaks for."""
        # Given back before the new session takes its own: a full house has room for who changes its name.
        await self.counters.give_each(self._slots.pop(session.id, ()))
        self.disconnect(session, "xclient")
        return self.open(session.listener, session.protocol, client, local_ip)

    async def connect(self, session: Session) -> Decision | None:
        """Count the session against its limits, and ask `connect`."""
        self.opened(session)
        over = await self._over(session)
        if over is not None:
            return over
        decision = (await self.chain_of(session).ask(Stages.connect, session)).value
        if isinstance(decision, _REFUSALS):
            self._emit(
                session, events.SessionRefused(**about(session), **why(decision), protocol=session.protocol)
            )
        return decision

    def bar(self, session: Session, reason: str, reply: Reply) -> None:
        """Take no more mail of a session, be it on its way: whatever is not committed yet never is."""
        self._barred[session.id] = Disconnect(reply.status, reply.text, reason=reason)

    async def helo(self, session: Session, name: str, *, extended: bool) -> Decision | None:
        """Ask `helo`, and set the session's name."""
        decision = (await self.chain_of(session).ask(Stages.helo, session, name)).value
        if isinstance(decision, _REFUSALS):
            self._emit(
                session, events.SessionRefused(**about(session), **why(decision), protocol=session.protocol)
            )
        else:
            session.helo, session.extended = name, extended
        return decision

    async def mail(
        self, session: Session, sender: Address, params: Mapping[str, str]
    ) -> tuple[Transaction, Decision | None]:
        """Begin a transaction and ask `mail`."""
        transaction = Transaction(new_id(), sender, _ORIGINS[session.protocol], session, params=params)
        answer = await self.chain_of(session).ask(Stages.mail, transaction)
        decision = answer.value
        if isinstance(decision, _REFUSALS):
            self._emit(session, events.SenderRefused(**about(session), **why(decision), sender=sender))
            return transaction, decision
        mark(transaction, decision, answer.plugin)
        self._emit(session, events.SenderAccepted(**about(session), message=transaction.id, sender=sender))
        return transaction, decision

    async def rcpt(
        self, transaction: Transaction, address: Address, params: Mapping[str, str]
    ) -> Decision | None:
        """Ask `relay`, where silence refuses, then `rcpt`; record the recipient when both agree."""
        session = _session(transaction)
        chain = self.chain_of(session)
        recipient = Recipient.of(address, params=params)
        permission = await chain.ask(Stages.relay, transaction, recipient)
        decision: Decision | None = permission.value or _NO_RELAY
        plugin = permission.plugin
        if isinstance(decision, Accept):
            recipient = decision.recipient or recipient
            policy = await chain.ask(Stages.rcpt, transaction, recipient)
            decision, plugin = policy.value, policy.plugin or plugin
        told = {**about(session), "message": transaction.id, "recipient": address, "plugin": plugin}
        if isinstance(decision, _REFUSALS):
            self._emit(session, events.RecipientRefused(**told, **why(decision), sender=transaction.sender))
            return decision
        record(transaction, recipient, decision, plugin)
        self._emit(session, events.RecipientAccepted(**told))
        return decision

    async def data(self, transaction: Transaction) -> Decision | None:
        """Ask `data`."""
        session = _session(transaction)
        answer = await self.chain_of(session).ask(Stages.data, transaction)
        decision = answer.value
        if isinstance(decision, _REFUSALS):
            self._refuse(transaction, decision)
        else:
            mark(transaction, decision, answer.plugin)
        return decision

    def spool(self, transaction: Transaction) -> Spool:
        """Give the place for the bytes of this transaction's message."""
        session = transaction.session
        limit = self._limits().message_size
        if session and session.message_size is not None:
            limit = session.message_size
        return Spool(self._queue.spool_folder, limit=limit, memory=self._memory)

    async def message(self, transaction: Transaction, message: Message) -> Decision:
        """Ask `incoming` and `message`, and commit. Accept means: on stable storage."""
        chain = self.chain_of(transaction.session)
        point("reception.content")
        came = message.copy()
        entry, decision = await self.admit(transaction, message, chain)
        if entry is None or entry.message.body is not came.body:
            drop(came)
        if entry is None:
            if isinstance(decision, _REFUSALS):
                self._refuse(transaction, decision)
            else:
                self._discarded(transaction, decision)
            return decision
        # From here on the message is submitted: neither a client that left nor a timer may stop the commit.
        return await asyncio.shield(self._spawn(self._commit(chain, entry, transaction)))

    async def message_for_each(self, transaction: Transaction, message: Message) -> list[Decision]:
        """Do as `message` does, but with a decision for each recipient: what LMTP answers."""
        chain = self.chain_of(transaction.session)
        point("reception.content")
        came = message.copy()
        message, said, plugin = await self._consult(transaction, message, chain)
        decisions = _decisions(transaction, said, plugin)
        wanted = _wanted(transaction, decisions)
        if not wanted or message.body is not came.body:
            drop(came)
        if wanted:
            entry = self._entry(transaction, message, wanted)
            end = await asyncio.shield(self._spawn(self._commit(chain, entry, transaction)))
        else:
            drop(message)
            end = Accept()
        self._tell_each(transaction, said, decisions, plugin)
        return [one if isinstance(one, _REFUSALS) else end for one in decisions]

    def _tell_each(
        self, transaction: Transaction, said: object, decisions: Sequence[Decision], plugin: str
    ) -> None:
        """Tell who is refused or dropped while the others' mail is taken."""
        first = decisions[0]
        if not isinstance(said, dict) and isinstance(first, _REFUSALS):
            self._refuse(transaction, first)
            return
        for recipient, decision in zip(transaction.recipients, decisions, strict=True):
            if isinstance(decision, _REFUSALS):
                told = {**about(transaction.session), "message": transaction.id, "plugin": plugin}
                told |= {"recipient": recipient.address, "sender": transaction.sender}
                self._emit(transaction.session, events.RecipientRefused(**told, **why(decision)))
        if transaction.discarded or all(one.discarded for one in transaction.recipients):
            self._discarded(transaction, Discard(transaction.discarded or "no recipient is left"))

    async def admit(
        self, transaction: Transaction, message: Message, chain: Chain | None = None
    ) -> tuple[Entry | None, Decision]:
        """Run `incoming` and `message`, also for mail born here; gives the entry, not yet stored.

        No entry comes with a refusal or a Discard.
        """
        chain = chain or self._chain()
        message, decision = await self.judge(transaction, message, chain)
        if isinstance(decision, (*_REFUSALS, Discard)):
            return None, decision
        wanted = [one for one in transaction.recipients if not one.discarded]
        return self._entry(transaction, message, wanted), decision

    async def judge(
        self, transaction: Transaction, message: Message, chain: Chain
    ) -> tuple[Message, Decision]:
        """Run `incoming` and `message`; gives the message as they leave it, and one decision."""
        body = message.body
        message, said, plugin = await self._consult(transaction, message, chain)
        decisions = _decisions(transaction, said, plugin)
        decision = _strictest(decisions) if isinstance(said, dict) else said or Accept()
        if transaction.discarded or all(one.discarded for one in transaction.recipients):
            reason = transaction.discarded or "no recipient is left"
            decision = decision if isinstance(decision, _REFUSALS) else Discard(reason)
        if isinstance(decision, (*_REFUSALS, Discard)) and message.body is not body:
            drop(message)
        return message, decision

    async def _consult(
        self, transaction: Transaction, message: Message, chain: Chain
    ) -> tuple[Message, Decision | dict[Address, Decision] | None, str]:
        """Run `incoming` and `message`; gives the message after both, what was said, and by which plugin."""
        edited = await chain.transform(Stages.incoming, transaction, message)
        if edited.failed:
            return message, FAULT, ""
        message = edited.value or message
        said = await chain.ask(Stages.message, transaction, message)
        for plugin, error in stored(transaction)[1].items():
            chain.emit(events.PluginFailed(plugin=plugin, stage="message", error=error))
            return message, FAULT, plugin
        return message, said.value, said.plugin

    def refused(self, of: Session | Transaction, stage: str, reply: Reply, reason: str) -> None:
        """Tell a refusal that the edge made itself: syntax, limits, malformed content."""
        session = of if isinstance(of, Session) else _session(of)
        told = {**about(session), "reply": str(reply), "reason": reason}
        if isinstance(of, Transaction) and stage == "message":
            count = len(of.recipients)
            event: events.Event = events.MessageRefused(
                **told, message=of.id, sender=of.sender, recipients=count
            )
        elif stage == "limit":
            event = events.LimitExceeded(**told, limit=reason, allowed=getattr(self._limits(), reason, 0))
        else:
            event = events.CommandRefused(**told, stage=stage)
        self._emit(session, event)

    def reset(self, transaction: Transaction) -> None:
        """The transaction ended without a message."""
        self.chain_of(transaction.session).tell(Stages.reset, transaction)

    def disconnect(self, session: Session, reason: str) -> None:
        """The session is over."""
        session.closed = True
        chain = self._chains.pop(session.id, None)
        self._barred.pop(session.id, None)
        self._give_back(session)
        if chain is not None:
            chain.emit(events.SessionClosed(**about(session), reason=reason))
            chain.tell(Stages.disconnect, session)

    async def drain(self) -> None:
        """Wait for commits under way."""
        if self._commits:
            await asyncio.wait(self._commits)

    def _spawn(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Run what must not end with the session's task."""
        task = asyncio.get_running_loop().create_task(work)
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return task

    def _give_back(self, session: Session) -> None:
        if slots := self._slots.pop(session.id, ()):
            self._spawn(self.counters.give_each(slots))

    async def _over(self, session: Session) -> Defer | None:
        """Take a slot of each limit on sessions; what is taken goes back at `disconnect`."""
        limits, client = self._limits(), session.client
        wanted = {"sessions": limits.sessions}
        names = {"sessions": "sessions"}
        for name, of in (("sessions_per_client", client.ip), ("sessions_per_network", client.network)):
            # Neither loopback nor a unix socket is a network.
            if of:
                names[f"sessions/{of}"], wanted[f"sessions/{of}"] = name, getattr(limits, name)
        over = await self.counters.take_each(wanted)
        if not over:
            self._slots[session.id] = list(wanted)
            return None
        decision = Defer("4.7.0", "too many connections, try again later", reason=names[over])
        told = {**about(session), **why(decision)}
        self._emit(session, events.LimitExceeded(**told, limit=names[over], allowed=wanted[over]))
        return decision

    async def _commit(self, chain: Chain, entry: Entry, transaction: Transaction) -> Decision:
        # Mail that is born here, as the bounce of a drop, has no session that could be barred.
        barred = self._barred.get(transaction.session.id) if transaction.session else None
        decision = barred or await self._stored(chain, entry)
        if decision is not None:
            drop(entry.message)
            self._refuse(transaction, decision)
            return decision
        point("reception.committed")
        for event in told(entry):
            chain.emit(event)
        chain.tell(Stages.queued, entry)
        point("reception.told")
        self._accepted()
        return Accept()

    async def _stored(self, chain: Chain, entry: Entry) -> Defer | None:
        try:
            point("reception.commit")
            await self._queue.add(entry)
        except QueueFull:
            return Defer("4.3.1", "no room on this system, try again later", reason="queue_full")
        except QueueError as error:
            chain.emit(events.QueueFailed(error=str(error)))
            return Defer("4.3.0", "the queue cannot take mail now, try again later", reason="queue_failed")
        return None

    def _entry(self, transaction: Transaction, message: Message, wanted: Iterable[Recipient]) -> Entry:
        now = self._clock.time()
        session = transaction.session
        if transaction.held:
            why, who = transaction.held, transaction.held_by
            wanted = [one if one.held else _held(one, why, who) for one in wanted]
        recipients = [
            EntryRecipient(number, one, "held" if one.held else "queued", due=now)
            for number, one in enumerate(wanted)
        ]
        return Entry(
            transaction.id,
            transaction.sender,
            message,
            recipients,
            now,
            transaction.origin,
            transaction.parent,
            transaction.params,
            {key: value for key, value in (about(session) | described(message.header)).items() if value},
            stored(transaction)[0],
            message.size,
        )

    def _refuse(self, transaction: Transaction, decision: Reject | Defer | Disconnect) -> None:
        told = {**about(transaction.session), **why(decision)}
        event = events.MessageRefused(**told, message=transaction.id, sender=transaction.sender)
        self._emit(transaction.session, event)

    def _discarded(self, transaction: Transaction, decision: Decision) -> None:
        reason = decision.reason if isinstance(decision, Discard) else transaction.discarded
        event = events.MessageDiscarded(
            **about(transaction.session), message=transaction.id, sender=transaction.sender, reason=reason
        )
        self._emit(transaction.session, event)

    def tell(self, event: events.Event) -> None:
        """Tell a fact of no session."""
        self._chain().emit(event)

    def chain_of(self, session: Session | None) -> Chain:
        """Give the chain that a session began with; mail born here has the newest."""
        return self._chains.get(session.id, self._chain()) if session else self._chain()

    def _emit(self, session: Session | None, event: events.Event) -> None:
        self.chain_of(session).emit(event)


def drop(message: Message) -> None:
    """Remove the file of a body that no queue has taken over."""
    if isinstance(message.body, FileBody):
        message.body.path.unlink(missing_ok=True)


def why(decision: Reject | Defer | Disconnect) -> dict[str, Any]:
    """Give the fields of a refusal."""
    return {"reason": decision.reason, "reply": f"{decision.status} {decision.text}"}


def _session(transaction: Transaction) -> Session:
    if transaction.session is None:
        raise ValueError("mail born here has no session")
    return transaction.session


def mark(transaction: Transaction, decision: Decision | None, plugin: str = "") -> None:
    """Note on a transaction that it is held or discarded."""
    if isinstance(decision, Hold) and not transaction.held:
        transaction.held, transaction.held_by = decision.reason or _HELD, plugin
    elif isinstance(decision, Discard):
        transaction.discarded = transaction.discarded or decision.reason


def record(
    transaction: Transaction, recipient: Recipient, decision: Decision | None, plugin: str = ""
) -> None:
    """Add a recipient that was not refused."""
    if isinstance(decision, Hold):
        recipient = _held(recipient, decision.reason, plugin)
    elif isinstance(decision, Discard):
        recipient = replace(recipient, discarded=decision.reason)
    transaction.recipients.append(recipient)


def _held(recipient: Recipient, reason: str, plugin: str) -> Recipient:
    return replace(recipient, held=reason or _HELD, held_by=plugin)


def _decisions(
    transaction: Transaction, said: Decision | dict[Address, Decision] | None, plugin: str
) -> list[Decision]:
    """Give the decision for each recipient; Hold and Discard mark just theirs, or the whole transaction."""
    if not isinstance(said, dict):
        mark(transaction, said, plugin)
        return [said or Accept()] * len(transaction.recipients)
    decisions: list[Decision] = [said.get(one.address, Accept()) for one in transaction.recipients]
    for i, (recipient, decision) in enumerate(zip(transaction.recipients, decisions, strict=True)):
        if isinstance(decision, Hold):
            transaction.recipients[i] = _held(recipient, decision.reason, plugin)
        elif isinstance(decision, Discard):
            transaction.recipients[i] = replace(recipient, discarded=decision.reason)
    return decisions


def _strictest(decisions: Sequence[Decision]) -> Decision:
    """Give the refusal that counts where one reply is for all; a mark of one recipient is none."""
    refusals = (one for one in decisions if isinstance(one, _REFUSALS))
    return max(refusals, key=lambda one: _STRICTNESS.index(type(one)), default=Accept())


def _wanted(transaction: Transaction, decisions: Sequence[Decision]) -> list[Recipient]:
    """Give the recipients whose mail is to be stored."""
    if transaction.discarded:
        return []
    pairs = zip(transaction.recipients, decisions, strict=True)
    return [one for one, decision in pairs if not (one.discarded or isinstance(decision, _REFUSALS))]
