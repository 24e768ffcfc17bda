"""Destinations that get no mail for now, as a person said: mail for them waits, and no attempt is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.queue.filter import Filter, like
from gateway.queue.store import Finish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.envelope import Delivery, EntryRecipient
    from gateway.queue.store import Queue
    from gateway.services import Clock

#: Waiting mail is looked at again after this time at the latest, should nobody have told that it may go.
LONGEST = 3600.0
#: Seconds between two looks at what is suspended.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Suspension:
    """A suspended destination; the store keeps it over restarts, for all that work its queue."""

    #: A domain as it was rewritten, or what a route calls its destination; may be a pattern (`*` is all).
    name: str
    #: Seconds since the epoch.
    since: float
    #: When it ends by itself, seconds since the epoch; 0 when it does not.
    until: float = 0.0
    #: Who said so, and why.
    actor: str = ""
    reason: str = ""

    def runs(self, now: float) -> bool:
        """Whether it has not ended."""
        return not self.until or now < self.until

    def stops(self, one: EntryRecipient) -> bool:
        """Whether a recipient waits for its end: where it goes counts, not what the sender wrote."""
        destination = one.route.destination if one.route else ""
        return like(self.name, one.recipient.address.domain) or like(self.name, destination)


class Suspended:
    """What is suspended in a store, looked up once a second while nothing is."""

    def __init__(self, store: Queue, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._found: list[Suspension] = []
        self._looked = -_LOOK

    async def put_off(self, delivery: Delivery) -> bool:
        """Put claimed recipients back, if they must wait: that is no attempt, and nothing is told."""
        due = await self._until(delivery.recipients)
        if not due:
            return False
        waiting = [replace(one, state="queued", due=due) for one in delivery.recipients]
        await self._store.finish([Finish(delivery.entry, waiting)])
        if not await self._until(delivery.recipients):
            # It was resumed before we had stored this, and nobody else will make it due.
            await self._store.retry(Filter([delivery.entry.id]))
        return True

    async def _until(self, recipients: Sequence[EntryRecipient]) -> float:
        """When these may be tried again, seconds since the epoch; 0 for now."""
        looked = self._clock.monotonic()
        # Mail is put off for long, so what was seen a moment ago does not count for it.
        if looked - self._looked >= _LOOK or self._ends(recipients):
            self._found, self._looked = await self._store.suspended(), looked
        ends = self._ends(recipients)
        if not ends:
            return 0.0
        latest = self._clock.time() + LONGEST
        return min(latest, max(ends)) if all(ends) else latest

    def _ends(self, recipients: Sequence[EntryRecipient]) -> list[float]:
        now = self._clock.time()
        return [found.until for found in self._found if found.runs(now) and any(map(found.stops, recipients))]
