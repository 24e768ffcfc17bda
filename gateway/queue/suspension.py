"""Destinations that get no mail for now, as a person said: mail for them waits, and no attempt is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.queue.filter import destinations, like

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.envelope import EntryRecipient
    from gateway.queue.store import Queue
    from gateway.services import Clock

#: Waiting mail is looked at again after this time at the latest, should nobody have told that it may go.
LONGEST = 3600.0
#: Seconds between two looks at what is suspended.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Suspension:
    """A suspended destination; the store keeps it over restarts, for all that work its queue."""

    #: A domain, or what a route calls its destination; may be a pattern (`*` is every destination).
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
        """Whether a recipient waits for its end."""
        return any(like(self.name, name) for name in destinations(one))


class Suspended:
    """What is suspended in a store, looked up once a second at most."""

    def __init__(self, store: Queue, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._found: list[Suspension] = []
        self._looked = -_LOOK

    async def until(self, recipients: Iterable[EntryRecipient]) -> float:
        """When these may be tried again, seconds since the epoch; 0 when nothing stops them."""
        if self._clock.monotonic() - self._looked >= _LOOK:
            self._found, self._looked = await self._store.suspended(), self._clock.monotonic()
        now = self._clock.time()
        stopped = list(recipients)
        ends = [found.until for found in self._found if found.runs(now) and any(map(found.stops, stopped))]
        if not ends:
            return 0.0
        return min(now + LONGEST, max(ends)) if all(ends) else now + LONGEST
