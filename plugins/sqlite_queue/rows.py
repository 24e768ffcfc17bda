"""Entries and recipients as rows, and back. Pure: no connection."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from gateway import Address, Entry, EntryRecipient, FileBody, Message, Recipient, Route
from gateway.queue import ENDED, RecipientState, lane

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from gateway.queue import Snapshot

Row = tuple[Any, ...]
ENTRY = "seq, id, sender, birth, origin, parent, size, more, file"
#: What `more` of a recipient may hold of its Recipient.
_KEPT = ("claimed", "rule", "params", "held", "held_by", "expanded", "chosen")
RECIPIENT = "entry, number, state, due, attempts, address, original, more"


def encode(text: str) -> bytes:
    """Give the bytes that an address, or a lane, stands for."""
    return text.encode("utf-8", "surrogateescape")


def to_json(value: Any) -> str:
    """Write JSON; strings with surrogates too, which orjson refuses."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value)


def state_row(recipient: EntryRecipient, now: float) -> str:
    """Give the column `state` for a recipient."""
    if recipient.state == "queued":
        return "ready" if recipient.due <= now else "waiting"
    return recipient.state


def id_key(entry_id: str) -> bytes:
    """Give the 16 bytes of an id."""
    return bytes.fromhex(entry_id.replace("-", ""))


def entry_row(entry: Entry, state: str, was: Snapshot | None = None) -> Row:
    """Give the columns of an entry, in the order of the table, without `seq`; `was`: one restored."""
    body = entry.message.body
    filed = isinstance(body, FileBody)
    return (
        entry.id,
        state,
        sum(one.state not in ENDED for one in entry.recipients),
        sum(one.state == "held" for one in entry.recipients),
        was.delivered if was else 0,
        max(was.numbers if was else 0, max((r.number for r in entry.recipients), default=-1) + 1),
        encode(entry.sender),
        entry.birth,
        entry.origin,
        entry.parent,
        entry.size or entry.message.size,
        to_json([dict(entry.params), dict(entry.facts), entry.notes]),
        body.size if isinstance(body, FileBody) else None,
        entry.message.header,
        None if filed else body,
    )


def recipient_row(seq: int, entry: Entry, recipient: EntryRecipient, state: str, due: float) -> Row:
    """Give the columns of a recipient, in the order of the table."""
    return (
        seq,
        recipient.number,
        state,
        due,
        recipient.attempts,
        encode(lane(entry, recipient)),
        encode(recipient.recipient.address),
        encode(recipient.recipient.original),
        more_of(recipient),
    )


def more_of(recipient: EntryRecipient) -> str:
    """Give the column `more` of a recipient: what most have not, so most rows hold an empty string."""
    one = recipient.recipient
    found = {
        "claimed": one.claimed,
        "rule": one.rule,
        "params": dict(one.params),
        "held": one.held,
        "held_by": one.held_by,
        "expanded": one.expanded,
        "chosen": one.chosen,
        "route": asdict(recipient.route) if recipient.route else None,
        "report": recipient.report,
        "status": recipient.status,
    }
    found = {key: value for key, value in found.items() if value}
    return to_json(found) if found else ""


def recipient_of(row: Row) -> EntryRecipient:
    """Read the columns RECIPIENT."""
    _, number, state, due, attempts, address, original, text = row
    more = json.loads(text) if text else {}
    recipient = Recipient(
        Address.decode(address),
        Address.decode(original),
        **{name: more[name] for name in _KEPT if name in more},
    )
    route = Route(**more["route"]) if "route" in more else None
    outside: RecipientState = "queued" if state in ("ready", "waiting") else state
    return EntryRecipient(
        number, recipient, outside, route, attempts, due, more.get("report", ""), more.get("status", "")
    )


def entry_of(row: Row, recipients: Iterable[Row], message: Message) -> Entry:
    """Read the columns ENTRY; `message` is what the caller wants to show of the content."""
    _, id_, sender, birth, origin, parent, size, more, _ = row
    params, facts, notes = json.loads(more)
    found = [recipient_of(r) for r in recipients]
    return Entry(
        id_, Address.decode(sender), message, found, birth, origin, parent, params, facts, notes, size
    )


def message_of(bodies: Path, entry_id: str, file: int | None, header: bytes, body: bytes | None) -> Message:
    """Make the message of an entry; a body on disk stays there."""
    return Message(header, (body or b"") if file is None else FileBody(bodies / entry_id, file))
