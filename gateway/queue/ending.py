"""The end of attempts: first in the journal, then in one transaction.

Attempts of one entry that are over while another of it is being stored wait for that, and are then stored
together: a list post has a hundred thousand of them, and each transaction costs two fsyncs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from gateway import events
from gateway.decision import Defer, Reject
from gateway.envelope import Failure
from gateway.errors import ClaimLost, JournalError, QueueError
from gateway.faultpoint import point
from gateway.hookspecs import Stages
from gateway.queue.attempt import admitted, age, facts
from gateway.queue.birth import told
from gateway.queue.bounce import DOUBLE, plain_bounce
from gateway.queue.dsn import wants
from gateway.queue.store import ENDED, Finish, Rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.envelope import Birth, Entry, EntryRecipient
    from gateway.events import Event
    from gateway.queue.attempt import Ended, Tools

#: Between two tries to store what is known, in seconds (qmail-send waits as long when a disk is full).
PAUSE = 10.0


class Endings:
    """Ends attempts, those of one entry in turns, so that exactly one of them has its last recipient."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        #: Entry -> the attempts that end at its next turn, and who waits for it.
        self._next: dict[str, tuple[list[Ended], asyncio.Future[None]]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def end(self, one: Ended) -> None:
        """Store what became of an attempt. Raises what the store or journal says when the gateway stops."""
        id_ = one.entry.id
        if id_ in self._next:
            members, done = self._next[id_]
            members.append(one)
            await done
            return
        members, done = self._next[id_] = [one], asyncio.get_running_loop().create_future()
        async with self._locks.setdefault(id_, asyncio.Lock()):
            del self._next[id_]
            try:
                await _Turn(self._tools, members).end()
            except Exception as error:
                if len(members) > 1:
                    done.set_exception(error)
                raise
            done.set_result(None)


class _Turn:
    """The attempts of one entry that end together."""

    def __init__(self, tools: Tools, members: Sequence[Ended]) -> None:
        self._tools = tools
        self._entry = members[-1].entry
        self._chain = members[-1].chain
        self._ended = [one for member in members for one in member.recipients]
        self._told = [(member.chain, event) for member in members for event in member.told]
        self._births = [birth for member in members for birth in member.births]
        self._notices = [notice for member in members for notice in member.notices]
        self._actor = next((member.actor for member in members if member.actor), "")

    async def end(self) -> None:
        """Write the bounce if these were the last, tell, and store."""
        rest = Rest(1)
        if all(one.state in ENDED for one in self._ended):
            rest = await self._patiently(self._rest)
            if not rest.open and (bounce := await self._bounce([*rest.failures, *self._ended])):
                self._births.append(bounce)
        if self._notices and (report := await self._report()):
            self._births.append(report)
        if not rest.open and not rest.held:
            self._tell(self._finished(rest))
        for chain, event in self._told:
            chain.emit(event)
        point("attempt.told")
        await self._patiently(lambda: self._store(bounced=not rest.open))
        point("attempt.ended")
        for birth in self._births:
            for event in told(birth):
                self._chain.emit(event)
            self._chain.tell(Stages.queued, birth)
        point("attempt.over")

    async def _rest(self) -> Rest:
        return await self._tools.store.rest(self._entry.id, [one.number for one in self._ended])

    async def _store(self, *, bounced: bool) -> None:
        await self._tools.journal.flush()
        point("attempt.safe")
        await self._tools.store.finish([Finish(self._entry, self._ended, self._births, bounced)])

    def _tell(self, event: Event) -> None:
        self._told.append((self._chain, event))

    async def _patiently(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do it again and again until the disk lets us; what is known of a delivery is never thrown away.

        Raises the error when the gateway stops: then the delivery is repeated by the next one.
        """
        while True:
            try:
                return await work()
            except ClaimLost:
                raise
            except (QueueError, JournalError) as error:
                self._chain.emit(events.QueueFailed(error=str(error)))
                if await self._stopped_within(PAUSE):
                    raise

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._tools.stopping.wait()
                return True
        except TimeoutError:
            return False

    async def _bounce(self, ended: Sequence[EntryRecipient]) -> Entry | None:
        """Write the bounce, if anybody failed; the failures of this turn and of those before it."""
        entry = self._entry
        failed = [one for one in ended if one.state != "delivered"]
        if not failed:
            return None
        point("attempt.bounce")
        names = tuple(one.recipient.original for one in failed)
        about: dict[str, Any] = {
            **facts(entry),
            "sender": entry.sender,
            "recipients": names,
            "actor": self._actor,
        }
        bounce = reason = None
        wanted = [one for one in failed if wants(entry, one.recipient, "FAILURE")]
        if entry.sender == DOUBLE or not wanted:
            reason = "not_wanted" if not wanted else "triple_bounce"
        else:
            bounce, reason = await self._written(wanted)
            point("attempt.bounced")
        self._tell(events.MessageBounced(**about, bounce=bounce.id if bounce else "", reason=reason or ""))
        return bounce

    async def _written(self, failed: Sequence[EntryRecipient]) -> tuple[Entry | None, str]:
        entry, site = self._entry, self._tools.site
        failures = [Failure(one.recipient, one.report, one.status, one.state == "expired") for one in failed]
        answer = await self._chain.ask(Stages.bounce, entry, failures)
        birth = answer.value or plain_bounce(entry, failures, site.hostname, site.postmaster)
        return (None, "triple_bounce") if birth is None else await self._admitted(birth)

    async def _report(self) -> Entry | None:
        """Write what the sender wished to hear besides of failures, if a plugin does."""
        answer = await self._chain.ask(Stages.report, self._entry, self._notices)
        return (await self._admitted(answer.value))[0] if answer.value else None

    async def _admitted(self, birth: Birth) -> tuple[Entry | None, str]:
        """Run a bounce or report through the stages, again while it is deferred; says why there is none."""
        # What the sender is told of needs the same protection (RFC 8689 section 5).
        params = {"REQUIRETLS": ""} if "REQUIRETLS" in self._entry.params else {}
        while True:
            born, decision = await admitted(self._tools, self._entry, birth, params, {})
            if not isinstance(decision, Defer):
                refused = "refused" if isinstance(decision, Reject) else "discarded"
                return born, "" if born else refused
            if await self._stopped_within(PAUSE):
                raise QueueError("the bounce was deferred, and the gateway stops")

    def _finished(self, rest: Rest) -> Event:
        delivered = rest.delivered + sum(one.state == "delivered" for one in self._ended)
        failed = len(rest.failures) + sum(one.state != "delivered" for one in self._ended)
        seconds = age(self._tools.clock, self._entry)
        return events.MessageFinished(
            **facts(self._entry), delivered=delivered, failed=failed, seconds=seconds
        )
