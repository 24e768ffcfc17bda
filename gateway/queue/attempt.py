"""One attempt: from the claim of its recipients to what became of each; ending.py stores it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.decision import Defer, Reject
from gateway.envelope import Notice, Outcome, Recipient, Transaction, new_id
from gateway.faultpoint import point
from gateway.hookspecs import Stages
from gateway.queue.dsn import inherited, success, wants, wants_warning, warned
from gateway.queue.guarded import Guarded

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gateway.chain import Chain
    from gateway.decision import Decision
    from gateway.envelope import Birth, Delivery, Entry, EntryRecipient
    from gateway.events import Event
    from gateway.message import Message
    from gateway.plugin import Site
    from gateway.queue.store import Queue
    from gateway.services import Clock
    from gateway.settings import Queue as Settings

#: When nobody answers `retry`.
_AN_HOUR = 3600.0
_EXPIRED = "The message was in the queue for too long; this was the last try.\n"
#: Characters of a report that are kept: as many as qmail-send keeps bytes of it.
_LONGEST = 9_998
_FACTS = ("session", "client_ip", "listener", "user")

if TYPE_CHECKING:
    from typing import Protocol

    class Journal(Protocol):
        """What this needs of the journal."""

        async def flush(self) -> None:
            """Return when all that was emitted so far is on stable storage."""

    Admit = Callable[[Transaction, Message], Awaitable[tuple[Entry | None, Decision]]]


@dataclass(frozen=True, slots=True)
class Tools:
    """What an attempt works with."""

    store: Queue
    chain: Callable[[], Chain]
    journal: Journal
    clock: Clock
    admit: Admit
    site: Site
    #: Set when the gateway stops: whoever waits for a better time gives up.
    stopping: asyncio.Event


@dataclass(slots=True)
class Ended:
    """An attempt that is over and not yet stored."""

    entry: Entry
    chain: Chain
    #: The recipients of the attempt in their new state, the events that tell it, and what was born.
    recipients: list[EntryRecipient] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    births: list[Entry] = field(default_factory=list)
    #: What the sender wished to hear, besides of failures.
    notices: list[Notice] = field(default_factory=list)
    #: Who has asked for it, where a person did.
    actor: str = ""


class Attempt:
    """Carries out one delivery. The chain is the one of its beginning, over reloads."""

    def __init__(self, tools: Tools, delivery: Delivery, settings: Settings) -> None:
        self._tools = tools
        self._delivery = delivery
        self._chain = tools.chain()
        self._began = tools.clock.monotonic()
        seconds = tools.clock.time() - delivery.entry.birth
        self._dying = seconds > settings.lifetime
        self._late = seconds > settings.delay_warning
        self._until = delivery.entry.birth + settings.lifetime

    async def deliver(self) -> list[Outcome]:
        """Ask `outgoing` and `deliver`; gives one outcome for each recipient, whatever the plugins do."""
        delivery, route = self._delivery, self._delivery.route
        await self._tools.store.confirm(delivery.entry.id)
        for one in delivery.recipients:
            told = {
                **self._about(one),
                "delivery": delivery.id,
                "plugin": route.plugin,
                "channel": route.channel,
            }
            self._chain.emit(events.DeliveryStarted(**told, destination=route.destination))
        point("attempt.begun")
        edited = await self._chain.transform(Stages.outgoing, delivery, delivery.entry.message.copy())
        message: Message | None = edited.value
        if edited.failed or message is None:
            return self.deferred("a plugin failed before the delivery")
        guarded = Guarded(message, lambda: self._tools.store.ours(delivery.entry.id))
        sent = replace(delivery, entry=replace(delivery.entry, message=guarded))
        point("attempt.deliver")
        answer = await self._chain.ask_plugin(route.plugin, Stages.deliver, sent)
        point("attempt.delivered")
        if answer.value is None:
            why = "failed" if answer.failed else "is not running"
            return self.deferred(f"the plugin {route.plugin} {why}")
        return self._checked(answer.value)

    def deferred(self, text: str) -> list[Outcome]:
        """Give the outcomes of a delivery that could not even begin."""
        return [Outcome(one.number, "deferred", f"{text}\n", "4.3.0") for one in self._delivery.recipients]

    def _checked(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Refuse outcomes that do not name each recipient once: to guess here would lose mail."""
        wanted = sorted(one.number for one in self._delivery.recipients)
        given = sorted(outcome.number for outcome in outcomes)
        if given == wanted:
            return list(outcomes)
        plugin = self._delivery.route.plugin
        error = f"gave outcomes for recipients {given[:20]}, wanted {wanted[:20]}"
        self._chain.emit(events.PluginFailed(plugin=plugin, stage="deliver", error=error))
        return self.deferred(f"the plugin {plugin} failed")

    async def ended(self, outcomes: Sequence[Outcome], reason: str = "", actor: str = "") -> Ended:
        """Say what becomes of each recipient, and what was born."""
        by_number = {outcome.number: outcome for outcome in outcomes}
        ended = Ended(self._delivery.entry, self._chain, actor=actor)
        for one in self._delivery.recipients:
            ended.recipients.append(await self._ended(one, by_number[one.number], ended, reason))
        return ended

    async def _ended(
        self, one: EntryRecipient, outcome: Outcome, ended: Ended, reason: str
    ) -> EntryRecipient:
        """Give the recipient as it is after the attempt, with its events and births beside it."""
        told, before = ended.told, len(ended.births)
        if outcome.result == "delivered" and outcome.births:
            outcome = await self._with_births(one, outcome, ended)
            point("attempt.births")
        text = (outcome.text or outcome.reply)[:_LONGEST]
        after = replace(one, attempts=one.attempts + 1, report=text, status=outcome.status)
        about = self._told(one, outcome, reason)
        if outcome.result == "delivered":
            after.state = "delivered"
            births = tuple(birth.id for birth in ended.births[before:])
            told.append(events.DeliveryDelivered(**about, births=births))
        elif outcome.result == "failed":
            after.state = "failed"
            told.append(events.DeliveryFailed(**about))
        elif self._dying:
            after.state, after.report = "expired", _with_line_end(text) + _EXPIRED
            told.append(
                events.MessageExpired(
                    **self._about(one),
                    seconds=age(self._tools.clock, self._delivery.entry),
                    text=after.report,
                )
            )
        else:
            after.state, after.due = "queued", await self._due(outcome)
            told.append(events.DeliveryDeferred(**about, next=after.due))
        self._notice(after, outcome, ended)
        return after

    def _notice(self, after: EntryRecipient, outcome: Outcome, ended: Ended) -> None:
        """Note what the sender wished to hear of this."""
        entry, recipient = self._delivery.entry, after.recipient
        if after.state == "delivered" and wants(entry, recipient, "SUCCESS"):
            action = success(self._delivery.sender, outcome)
            if action:
                ended.notices.append(Notice(recipient, action, after.report, outcome.status))
        elif after.state == "queued" and self._late and wants_warning(entry, recipient):
            after.recipient = warned(recipient)
            told = Notice(recipient, "delayed", after.report, outcome.status, self._until)
            ended.notices.append(told)

    async def _with_births(self, one: EntryRecipient, outcome: Outcome, ended: Ended) -> Outcome:
        """Admit what a delivery gave birth to: all of it, or the recipient is not delivered."""
        births: list[Entry] = []
        for birth in outcome.births:
            params = inherited(
                self._delivery.entry, self._delivery.sender, one.recipient, outcome.births, birth
            )
            entry, decision = await admitted(self._tools, self._delivery.entry, birth, *params)
            if isinstance(decision, Reject):
                return replace(outcome, result="failed", text=f"{decision.text}\n", status=decision.status)
            if isinstance(decision, Defer):
                return replace(outcome, result="deferred", text=f"{decision.text}\n", status=decision.status)
            births += [entry] if entry else []
        ended.births += births
        return outcome

    async def _due(self, outcome: Outcome) -> float:
        now = self._tools.clock.time()
        answer = await self._chain.ask(Stages.retry, self._delivery, outcome)
        due = answer.value
        # A time in the past would spin; one that is no number would never come.
        return max(due, now + 1) if due is not None and math.isfinite(due) else now + _AN_HOUR

    def _about(self, one: EntryRecipient) -> dict[str, Any]:
        told = {"recipient": one.recipient.original, "number": one.number, "attempt": one.attempts + 1}
        return {**facts(self._delivery.entry), **told}

    def _told(self, one: EntryRecipient, outcome: Outcome, reason: str) -> dict[str, Any]:
        route = self._delivery.route
        return {
            **self._about(one),
            "delivery": self._delivery.id,
            "plugin": route.plugin,
            "channel": route.channel,
            "peer": outcome.peer,
            "status": outcome.status,
            "text": outcome.text,
            "reply": outcome.reply,
            "reason": reason,
            "seconds": round(self._tools.clock.monotonic() - self._began, 6),
        }


async def admitted(
    tools: Tools, parent: Entry, birth: Birth, params: Mapping[str, str], wishes: Mapping[str, str]
) -> tuple[Entry | None, Decision]:
    """Run mail that an entry gave birth to through `incoming` and `message`."""
    transaction = Transaction(
        new_id(),
        birth.sender,
        birth.origin,
        recipients=[Recipient(address, address, params=wishes) for address in birth.recipients],
        params=params,
        parent=parent.id,
    )
    return await tools.admit(transaction, birth.message)


def facts(entry: Entry) -> dict[str, Any]:
    """Give the fields that every event of an entry has."""
    found = {key: entry.facts[key] for key in _FACTS if key in entry.facts}
    return {**found, "message": entry.id, "parent": entry.parent}


def age(clock: Clock, entry: Entry) -> float:
    """Say how old an entry is, in seconds."""
    return round(max(0.0, clock.time() - entry.birth), 3)


def _with_line_end(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
