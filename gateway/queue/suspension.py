"""Destinations that get no mail for now, as a person said: mail for them waits, and no attempt is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.queue.filter import like

if TYPE_CHECKING:
    from gateway.envelope import EntryRecipient


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
        """Whether a recipient waits for its end: by its domain before or behind `rewrite`, or its route."""
        recipient = one.recipient
        names = {recipient.address.domain, recipient.original.domain}
        if one.route and one.route.destination:
            names.add(one.route.destination)
        return any(like(self.name, name) for name in names)
