"""What is told when an entry is on stable storage, wherever it was born."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import events

if TYPE_CHECKING:
    from gateway.envelope import Entry


def accepted(entry: Entry, *, recovered: bool = False) -> events.MessageAccepted:
    """Make the event of an entry that is on stable storage."""
    facts: dict[str, Any] = dict(entry.facts)
    return events.MessageAccepted(
        **facts,
        message=entry.id,
        parent=entry.parent,
        sender=entry.sender,
        recipients=len(entry.recipients),
        size=entry.size,
        origin=entry.origin,
        recovered=recovered,
    )
