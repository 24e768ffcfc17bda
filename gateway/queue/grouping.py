"""Which recipients of an entry share an attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.envelope import Delivery, Route, expand_verp, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.envelope import Entry, EntryRecipient

#: Recipients of one remote delivery (RFC 5321 section 4.5.3.1.8 lets every server refuse more).
GROUP = 100
#: For recipients that nobody routes: they wait as local mail does, and are routed again.
NOWHERE = Route("", "local")


def deliveries(entry: Entry) -> Iterable[Delivery]:
    """Group recipients: remote ones with the same route share an attempt, except under VERP."""
    groups: dict[object, list[EntryRecipient]] = {}
    for one in entry.recipients:
        route = one.route or NOWHERE
        sender = expand_verp(entry.sender, one.recipient.address)
        alone = one.number if route.channel == "local" or sender != entry.sender else None
        groups.setdefault((route, one.attempts, alone), []).append(one)
    for some in groups.values():
        for start in range(0, len(some), GROUP):
            yield _delivery(entry, some[start : start + GROUP])


def _delivery(entry: Entry, some: list[EntryRecipient]) -> Delivery:
    first = some[0]
    sender = expand_verp(entry.sender, first.recipient.address)
    return Delivery(new_id(), entry, first.route or NOWHERE, tuple(some), sender, first.attempts + 1)
