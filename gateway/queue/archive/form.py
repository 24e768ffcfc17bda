r"""What an archive says of a message beside its text: a Snapshot as JSON, and back. Pure.

Addresses may hold bytes that are no UTF-8; JSON has them as lone surrogates (`\udcff` is the byte ff).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, get_args

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Origin, Recipient, RecipientState, Route
from gateway.queue.store import Snapshot

if TYPE_CHECKING:
    from gateway.message import Message

#: An id names files of the store: nothing else may stand in an archive.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Fields of a Recipient that are kept when they are set; a discarded one is never queued.
_KEPT = [one.name for one in fields(Recipient) if one.name not in ("address", "original", "discarded")]


def is_id(text: str) -> bool:
    """Tell whether this is an id as `new_id` makes them."""
    return _ID.fullmatch(text) is not None


def snapshot_json(snapshot: Snapshot) -> bytes:
    """Write everything but the text of the message."""
    entry = snapshot.entry
    return json.dumps(
        {
            "id": entry.id,
            "sender": entry.sender,
            "birth": entry.birth,
            "origin": entry.origin,
            "parent": entry.parent,
            "size": entry.size,
            "params": dict(entry.params),
            "facts": dict(entry.facts),
            "notes": entry.notes,
            "delivered": snapshot.delivered,
            "numbers": snapshot.numbers,
            "recipients": [_recipient_json(one) for one in entry.recipients],
        },
        indent=1,
    ).encode()


def read_snapshot(data: bytes, message: Message) -> Snapshot:
    """Read it back. Raises ValueError, which says what is wrong.

    What was claimed is as it was before: the attempt's end is not known.
    """
    try:
        found = json.loads(data)
        recipients = [_recipient_of(one) for one in found["recipients"]]
        if not is_id(found["id"]) or not recipients or found["origin"] not in get_args(Origin):
            raise ValueError("its id, its recipients or its origin are none")
        entry = Entry(
            found["id"],
            Address(found["sender"]),
            message,
            recipients,
            finite(found["birth"]),
            found["origin"],
            str(found["parent"]),
            dict(found["params"]),
            dict(found["facts"]),
            dict(found["notes"]),
            int(found["size"]),
        )
        return Snapshot(entry, int(found["delivered"]), int(found["numbers"]))
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def finite(value: Any) -> float:
    """Read a time. Raises ValueError."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no time")
    return number


def _recipient_json(one: EntryRecipient) -> dict[str, Any]:
    recipient = one.recipient
    values = {name: getattr(recipient, name) for name in _KEPT}
    values["params"] = dict(recipient.params)
    return {
        "number": one.number,
        "address": recipient.address,
        "original": recipient.original,
        "state": one.state,
        "due": one.due,
        "attempts": one.attempts,
        "report": one.report,
        "status": one.status,
        "route": asdict(one.route) if one.route else None,
        **{name: value for name, value in values.items() if value},
    }


def _recipient_of(found: dict[str, Any]) -> EntryRecipient:
    state: RecipientState = found["state"]
    if state not in get_args(RecipientState) or state == "delivered":
        raise ValueError(f"{state!r} is no state of a recipient")
    kept: dict[str, Any] = {name: found[name] for name in _KEPT if name in found}
    recipient = Recipient(Address(found["address"]), Address(found["original"]), **kept)
    one = EntryRecipient(
        int(found["number"]),
        recipient,
        state,
        Route(**found["route"]) if found["route"] else None,
        int(found["attempts"]),
        finite(found["due"]),
        str(found["report"]),
        str(found["status"]),
    )
    return one.given_back() if state == "attempting" else one
