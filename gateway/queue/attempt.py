"""One attempt: from the claim of its recipients to the one transaction that ends it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.decision import Defer, Reject
from gateway.envelope import Delivery, Failure, Outcome, Recipient, Transaction, new_id
from gateway.errors import JournalError, QueueError
from gateway.faultpoint import point
from gateway.hookspecs import Stages
from gateway.queue.birth import accepted
from gateway.queue.bounce import DOUBLE, plain_bounce
from gateway.queue.store import ENDED, Finish, Rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.chain import Chain
    from gateway.decision import Decision
    from gateway.envelope import Birth, Entry, EntryRecipient
    from gateway.events import Event
    from gateway.message import Message
    from gateway.plugin import Site
    from gateway.queue.store import Queue
    from gateway.services import Clock

#: When nobody answers `retry`.
_AN_HOUR = 3600.0
#: Between two tries to store what is known, in seconds (qmail-send waits as long when a disk is full).
PAUSE = 10.0
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


class Attempt:
    """Carries out one delivery. The chain is the one of its beginning, over reloads."""

    def __init__(self, tools: Tools, delivery: Delivery, lifetime: float) -> None:
        self._tools = tools
        self._delivery = delivery
        self._chain = tools.chain()
        self._began = tools.clock.monotonic()
        self._dying = tools.clock.time() > delivery.entry.birth + lifetime
        self._births: list[Entry] = []

    async def deliver(self) -> list[Outcome]:
        """Ask `outgoing` and `deliver`; gives one outcome for each recipient, whatever the plugins do."""
        delivery, route = self._delivery, self._delivery.route
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
        sent = replace(delivery, entry=replace(delivery.entry, message=message))
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

    async def end(self, outcomes: Sequence[Outcome], reason: str = "", actor: str = "") -> None:
        """Store what became of each recipient: first in the journal, then in one transaction."""
        by_number = {outcome.number: outcome for outcome in outcomes}
        told: list[Event] = []
        ended = [
            await self._ended(one, by_number[one.number], told, reason) for one in self._delivery.recipients
        ]
        rest = Rest(1)
        bounce: Entry | None = None
        if all(one.state in ENDED for one in ended):
            rest = await self._patiently(self._rest)
            if not rest.open:
                bounce = await self._bounce([*rest.failures, *ended], told, actor)
        if bounce:
            self._births.append(bounce)
        finish = Finish(self._delivery.entry, ended, self._births, bounced=not rest.open)
        if not rest.open and not rest.held:
            told.append(self._finished(rest, ended))
        for event in told:
            self._chain.emit(event)
        await self._patiently(lambda: self._store(finish))
        for birth in self._births:
            self._chain.emit(accepted(birth))
            self._chain.tell(Stages.queued, birth)

    async def _rest(self) -> Rest:
        numbers = [one.number for one in self._delivery.recipients]
        return await self._tools.store.rest(self._delivery.entry.id, numbers)

    async def _store(self, finish: Finish) -> None:
        await self._tools.journal.flush()
        await self._tools.store.finish([finish])

    async def _patiently(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do it again and again until the disk lets us; what is known of a delivery is never thrown away.

        Raises the error when the gateway stops: then the delivery is repeated by the next one.
        """
        while True:
            try:
                return await work()
            except (QueueError, JournalError) as error:
                self._chain.emit(events.QueueFailed(error=str(error)))
                if await self._stopped_within(PAUSE):
                    raise

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._tools.stopping.wait()
        except TimeoutError:
            return False

    async def _ended(
        self, one: EntryRecipient, outcome: Outcome, told: list[Event], reason: str
    ) -> EntryRecipient:
        """Give the recipient as it is after the attempt, and tell its events."""
        if outcome.result == "delivered" and outcome.births:
            outcome = await self._with_births(outcome)
        text = (outcome.text or outcome.reply)[:_LONGEST]
        after = replace(one, attempts=one.attempts + 1, report=text, status=outcome.status)
        about = self._told(one, outcome, reason)
        if outcome.result == "delivered":
            after.state = "delivered"
            told.append(events.DeliveryDelivered(**about))
        elif outcome.result == "failed":
            after.state = "failed"
            told.append(events.DeliveryFailed(**about))
        elif self._dying:
            after.state, after.report = "expired", _with_line_end(text) + _EXPIRED
            told.append(events.MessageExpired(**self._about(one), seconds=self._age(), text=after.report))
        else:
            after.state, after.due = "queued", await self._due(outcome)
            told.append(events.DeliveryDeferred(**about, next=after.due))
        return after

    async def _with_births(self, outcome: Outcome) -> Outcome:
        """Admit what a delivery gave birth to: all of it, or the recipient is not delivered."""
        births: list[Entry] = []
        for birth in outcome.births:
            entry, decision = await self._admitted(birth)
            if isinstance(decision, Reject):
                return replace(outcome, result="failed", text=f"{decision.text}\n", status=decision.status)
            if isinstance(decision, Defer):
                return replace(outcome, result="deferred", text=f"{decision.text}\n", status=decision.status)
            births += [entry] if entry else []
        self._births += births
        return outcome

    def _age(self) -> float:
        return round(max(0.0, self._tools.clock.time() - self._delivery.entry.birth), 3)

    async def _due(self, outcome: Outcome) -> float:
        now = self._tools.clock.time()
        answer = await self._chain.ask(Stages.retry, self._delivery, outcome)
        due = answer.value
        # A time in the past would spin; one that is no number would never come.
        return max(due, now + 1) if due is not None and math.isfinite(due) else now + _AN_HOUR

    async def _bounce(self, ended: Sequence[EntryRecipient], told: list[Event], actor: str) -> Entry | None:
        """Write the bounce, if anybody failed; the failures of this attempt and of those before it."""
        entry = self._delivery.entry
        failed = [one for one in ended if one.state != "delivered"]
        if not failed:
            return None
        names = tuple(one.recipient.original for one in failed)
        about: dict[str, Any] = {**self._facts(), "sender": entry.sender, "recipients": names, "actor": actor}
        bounce = reason = None
        if entry.sender == DOUBLE:
            reason = "triple_bounce"
        else:
            bounce, reason = await self._written(failed)
        told.append(events.MessageBounced(**about, bounce=bounce.id if bounce else "", reason=reason or ""))
        return bounce

    async def _written(self, failed: Sequence[EntryRecipient]) -> tuple[Entry | None, str]:
        entry, site = self._delivery.entry, self._tools.site
        failures = [Failure(one.recipient, one.report, one.status, one.state == "expired") for one in failed]
        answer = await self._chain.ask(Stages.bounce, entry, failures)
        birth = answer.value or plain_bounce(entry, failures, site.hostname, site.postmaster)
        if birth is None:
            return None, "triple_bounce"
        while True:
            admitted, decision = await self._admitted(birth)
            if not isinstance(decision, Defer):
                return admitted, "" if admitted else "refused" if isinstance(
                    decision, Reject
                ) else "discarded"
            if await self._stopped_within(PAUSE):
                raise QueueError("the bounce was deferred, and the gateway stops")

    async def _admitted(self, birth: Birth) -> tuple[Entry | None, Decision]:
        """Run mail born here through `incoming` and `message`."""
        transaction = Transaction(
            new_id(),
            birth.sender,
            birth.origin,
            recipients=[Recipient(address, address) for address in birth.recipients],
            parent=self._delivery.entry.id,
        )
        return await self._tools.admit(transaction, birth.message)

    def _finished(self, rest: Rest, ended: Sequence[EntryRecipient]) -> Event:
        delivered = rest.delivered + sum(one.state == "delivered" for one in ended)
        failed = len(rest.failures) + sum(one.state != "delivered" for one in ended)
        return events.MessageFinished(
            **self._facts(), delivered=delivered, failed=failed, seconds=self._age()
        )

    def _facts(self) -> dict[str, Any]:
        entry = self._delivery.entry
        found = {key: entry.facts[key] for key in _FACTS if key in entry.facts}
        return {**found, "message": entry.id, "parent": entry.parent}

    def _about(self, one: EntryRecipient) -> dict[str, Any]:
        told = {"recipient": one.recipient.original, "number": one.number, "attempt": one.attempts + 1}
        return {**self._facts(), **told}

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


def _with_line_end(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
