"""Which messages a person means. Pure; a store may say the same in SQL.

Texts are patterns, as in a shell: `*` stands for any characters, `?` for one; the case of ASCII letters does
not count. A text without them must be the whole. What an entry does not have (a user, a subject) matches
none.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.envelope import Entry, EntryRecipient

#: What `Filter.sender` is to mean the null sender.
NULL = "<>"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which recipients an operation is for: those that match every field that is given.

    Exact are `ids`, `state` and the times; all else is a pattern.
    """

    ids: Collection[str] = ()
    #: `<>` is the null sender.
    sender: str = ""
    #: As the sender wrote it, or as it was rewritten.
    recipient: str = ""
    #: Of the recipient, likewise; or what its route calls its destination.
    domain: str = ""
    #: Address of the client that handed it in (the fact `client_ip`); also a network, `192.0.2.0/24`.
    client: str = ""
    #: The login of that client (the fact `user`).
    user: str = ""
    #: The fact `message_id`, without `<>`.
    message_id: str = ""
    #: The fact `subject`.
    subject: str = ""
    #: The plugin that its route names, or that holds it.
    plugin: str = ""
    #: "queued", "attempting" or "held".
    state: str = ""
    #: Entries born before this time, seconds since the epoch; 0 matches all.
    born_before: float = 0.0
    #: Entries born at this time or later; 0 matches all.
    born_after: float = 0.0

    def matches(self, entry: Entry, one: EntryRecipient) -> bool:
        """Whether a recipient of an entry is meant."""
        return self._matches_entry(entry) and self._matches_recipient(one)

    def _matches_entry(self, entry: Entry) -> bool:
        facts = entry.facts
        return (
            (not self.ids or entry.id in self.ids)
            and (not self.sender or like(self.sender, entry.sender or NULL))
            and (not self.client or is_client(self.client, facts.get("client_ip", "")))
            and all(
                _is_there(getattr(self, field), facts.get(field, ""))
                for field in ("user", "message_id", "subject")
            )
            and (not self.born_before or entry.birth < self.born_before)
            and entry.birth >= self.born_after
        )

    def _matches_recipient(self, one: EntryRecipient) -> bool:
        plugin = one.route.plugin if one.route else ""
        return (
            (not self.state or one.state == self.state)
            and _is_there(self.recipient, one.recipient.address, one.recipient.original)
            and (not self.domain or any(like(self.domain, name) for name in destinations(one)))
            and _is_there(self.plugin, plugin, one.recipient.held_by)
        )


def _is_there(pattern: str, *texts: str) -> bool:
    return not pattern or any(text and like(pattern, text) for text in texts)


def destinations(one: EntryRecipient) -> set[str]:
    """Give the names by which people call where a recipient goes: its domains, and that of its route."""
    names = {one.recipient.address.domain, one.recipient.original.domain}
    return names | {one.route.destination} if one.route and one.route.destination else names


def regex(pattern: str) -> str:
    """Write a pattern as a regular expression: `[` stands for itself, unlike in a shell."""
    return f"(?ai:{fnmatch.translate(pattern.replace('[', '[[]'))})"


def like(pattern: str, text: str) -> bool:
    """Whether a pattern matches the whole of a text."""
    return re.match(regex(pattern), text) is not None


def is_client(wanted: str, ip: str) -> bool:
    """Whether a client's address is in a network, or matches a pattern."""
    if "/" not in wanted:
        return _is_there(wanted, ip)
    try:
        return ip_address(ip) in ip_network(wanted, strict=False)
    except ValueError:
        return False
