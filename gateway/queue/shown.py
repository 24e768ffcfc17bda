"""Entries as people are shown them: plain values, as `mailward queue list --json` prints them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.envelope import Entry, EntryRecipient
    from gateway.queue.suspension import Suspension


def describe(entry: Entry, suspended: Sequence[Suspension] = ()) -> dict[str, Any]:
    """Give an entry without its message."""
    facts = {name: clean(entry.facts.get(name, "")) for name in ("user", "message_id", "subject")}
    return {
        "id": entry.id,
        "sender": clean(entry.sender),
        "size": entry.size,
        "birth": entry.birth,
        "origin": entry.origin,
        "parent": entry.parent,
        "client": entry.facts.get("client_ip", ""),
        **facts,
        "recipients": [_recipient(one, suspended) for one in entry.recipients],
    }


def _recipient(one: EntryRecipient, suspended: Sequence[Suspension]) -> dict[str, Any]:
    recipient, held = one.recipient, one.state == "held"
    return {
        "address": clean(recipient.address),
        "original": clean(recipient.original),
        "state": one.state,
        "attempts": one.attempts,
        "due": one.due,
        "status": one.status,
        "report": clean(one.report),
        "route": f"{one.route.plugin} {one.route.destination}".strip() if one.route else "",
        "held": clean(recipient.held) if held else "",
        "held_by": recipient.held_by if held else "",
        "suspended": next((found.name for found in suspended if found.stops(one)), ""),
    }


def describe_suspension(suspension: Suspension) -> dict[str, Any]:
    """Give a suspended destination."""
    found = asdict(suspension)
    return {"destination": found.pop("name"), **found}


def clean(text: str) -> str:
    """Make what came from outside printable: JSON takes no lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
