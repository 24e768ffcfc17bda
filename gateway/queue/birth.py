"""What is known of an entry from its birth on, and told when it is on stable storage."""

from __future__ import annotations

import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import TYPE_CHECKING, Any

from gateway import events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.envelope import Entry

#: Facts of an entry that all its events have.
_FACTS = ("session", "client_ip", "listener", "user")
#: Characters of a header field that are kept to find a message by.
_LONGEST = 500
_FIELDS = re.compile(rb"^(subject|message-id)[ \t]*:((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


def described(header: bytes) -> dict[str, str]:
    """Give the facts `subject` and `message_id` of a header block: by them people find a message again."""
    found = {name.lower(): _words(value) for name, value in reversed(_FIELDS.findall(header))}
    return {
        "message_id": found.get(b"message-id", "").removeprefix("<").removesuffix(">")[:_LONGEST],
        "subject": _readable(found.get(b"subject", ""))[:_LONGEST],
    }


def _words(value: bytes) -> str:
    return " ".join(value[: 4 * _LONGEST].decode("utf-8", "replace").split())


def _readable(text: str) -> str:
    """Decode encoded words (RFC 2047); text that cannot be decoded stays as it came."""
    if "=?" not in text:
        return text
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


def told(entry: Entry, *, recovered: bool = False) -> Iterator[events.Event]:
    """Make the events of an entry that is on stable storage: accepted, and held where a stage said so."""
    facts: dict[str, Any] = {key: entry.facts[key] for key in _FACTS if key in entry.facts}
    facts |= {"message": entry.id, "parent": entry.parent, "recovered": recovered}
    yield events.MessageAccepted(
        **facts,
        helo=entry.facts.get("helo", ""),
        message_id=entry.facts.get("message_id", ""),
        sender=entry.sender,
        recipients=len(entry.recipients),
        size=entry.size,
        origin=entry.origin,
    )
    held = [one for one in entry.recipients if one.state == "held"]
    reasons = {(one.recipient.held, one.recipient.held_by) for one in held}
    if len(held) == len(entry.recipients) and len(reasons) == 1:
        # One word for the whole message: a list post has a hundred thousand recipients.
        ((reason, plugin),) = reasons
        yield events.MessageHeld(**facts, reason=reason, plugin=plugin)
        return
    for one in held:
        yield events.MessageHeld(
            **facts,
            recipient=one.recipient.original,
            number=one.number,
            reason=one.recipient.held,
            plugin=one.recipient.held_by,
        )
