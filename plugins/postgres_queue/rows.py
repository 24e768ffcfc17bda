"""Entries and recipients as rows, and back. Pure: no connection."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

from gateway import Address, Entry, EntryRecipient, FileBody, Message, Recipient, Route
from gateway.queue import lane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.queue import RecipientState

Row = tuple[Any, ...]
#: What is read of an entry, with its content or without, and of a recipient.
HEAD = "id::text, sender, birth, origin, parent, size, more, stored"
ENTRY = f"{HEAD}, header, body, numbers"
RECIPIENT = "entry::text, number, state, due, attempts, address, original, more"
#: Column -> type, as `add` writes them.
ENTRY_COLUMNS = {
    "id": "uuid",
    "state": "text",
    "owner": "bigint",
    "claimed": "integer",
    "open": "integer",
    "held": "integer",
    "delivered": "integer",
    "numbers": "integer",
    "sender": "bytea",
    "birth": "double precision",
    "origin": "text",
    "parent": "text",
    "size": "bigint",
    "more": "text",
    "header": "bytea",
    "body": "bytea",
    "stored": "bigint",
}
RECIPIENT_COLUMNS = {
    "entry": "uuid",
    "number": "integer",
    "state": "text",
    "due": "double precision",
    "attempts": "integer",
    "lane": "bigint",
    "domain": "bytea",
    "address": "bytea",
    "original": "bytea",
    "more": "text",
}
_DETAILS = tuple(one.name for one in fields(Recipient) if one.name not in ("address", "original"))


def encode(text: str) -> bytes:
    """Give the bytes that an address stands for."""
    return text.encode("utf-8", "surrogateescape")


def lane_of(name: str) -> int:
    """Make the number of a lane; two lanes that share one have their turns together."""
    return int.from_bytes(blake2b(encode(name), digest_size=8).digest(), signed=True)


def column_of(recipient: EntryRecipient, now: float) -> str:
    """Give the column `state` of a recipient."""
    if recipient.state == "queued":
        return "ready" if recipient.due <= now else "waiting"
    return recipient.state


def entry_row(entry: Entry, state: str, owner: int | None) -> tuple[Any, ...]:
    """Give the ENTRY_COLUMNS of a new entry."""
    body = entry.message.body
    filed = isinstance(body, FileBody)
    return (
        entry.id,
        state,
        owner,
        0,
        sum(one.state in ("queued", "held") for one in entry.recipients),
        sum(one.state == "held" for one in entry.recipients),
        0,
        max((one.number for one in entry.recipients), default=-1) + 1,
        encode(entry.sender),
        entry.birth,
        entry.origin,
        entry.parent,
        entry.size or entry.message.size,
        json.dumps([dict(entry.params), dict(entry.facts), entry.notes]),
        entry.message.header,
        None if filed else body,
        body.size if isinstance(body, FileBody) else None,
    )


def recipient_row(entry: Entry, one: EntryRecipient, now: float) -> tuple[Any, ...]:
    """Give the RECIPIENT_COLUMNS of a recipient."""
    return (
        entry.id,
        one.number,
        column_of(one, now),
        now if one.state == "held" else one.due,
        one.attempts,
        lane_of(lane(entry, one)),
        encode(one.recipient.original.domain),
        encode(one.recipient.address),
        encode(one.recipient.original),
        more_of(one),
    )


def more_of(one: EntryRecipient) -> str:
    """Give the column `more` of a recipient: what most have not, so most rows hold an empty string."""
    found: dict[str, Any] = {name: getattr(one.recipient, name) for name in _DETAILS}
    found["params"] = dict(one.recipient.params)
    found |= {"report": one.report, "status": one.status, "route": asdict(one.route) if one.route else None}
    found = {name: value for name, value in found.items() if value}
    return json.dumps(found) if found else ""


def recipient_of(row: Row) -> EntryRecipient:
    """Read the columns RECIPIENT."""
    _, number, state, due, attempts, address, original, text = row
    more = json.loads(text) if text else {}
    details = {name: more[name] for name in _DETAILS if name in more}
    recipient = Recipient(Address.decode(address), Address.decode(original), **details)
    route = Route(**more["route"]) if "route" in more else None
    outside: RecipientState = "queued" if state in ("ready", "waiting") else state
    return EntryRecipient(
        number, recipient, outside, route, attempts, due, more.get("report", ""), more.get("status", "")
    )


def entry_of(row: Row, recipients: Iterable[EntryRecipient], message: Message) -> Entry:
    """Read the columns HEAD; `message` is what the caller wants to show of the content."""
    id_, sender, birth, origin, parent, size, more = row[:7]
    params, facts, notes = json.loads(more)
    found = list(recipients)
    return Entry(
        id_, Address.decode(sender), message, found, birth, origin, parent, params, facts, notes, size
    )


def ids_of(texts: Iterable[str]) -> list[str]:
    """Give what may be an id; anything else that a person writes names no entry."""
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found.append(str(UUID(text)))
    return found


def by_entry(rows: Iterable[Row]) -> dict[str, list[EntryRecipient]]:
    """Group rows of RECIPIENT by their entry, in order of number."""
    found: dict[str, list[EntryRecipient]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(recipient_of(row))
    for some in found.values():
        some.sort(key=lambda one: one.number)
    return found
