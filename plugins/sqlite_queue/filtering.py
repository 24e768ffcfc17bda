"""A Filter as SQL: the functions that SQLite does not have, and the conditions that call them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway import Address
from gateway.queue import is_client, regex

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

    from gateway.queue import Filter

_Term = tuple[str, list[object]]

#: Texts of an entry: field of the Filter -> where it stands.
_ENTRY = {
    "sender": "iif(e.sender = x'', '<>', e.sender)",
    "user": "json_extract(e.more, '$[1].user')",
    "message_id": "json_extract(e.more, '$[1].message_id')",
    "subject": "json_extract(e.more, '$[1].subject')",
}
_MORE = "iif(r.more = '', '{}', r.more)"


def teach(connection: apsw.Connection) -> None:
    """Add our functions to a connection. Patterns come as regular expressions, which `re` keeps compiled."""
    connection.create_scalar_function("matches", _matches, 2, deterministic=True)
    connection.create_scalar_function("at_domain", _at_domain, 2, deterministic=True)
    connection.create_scalar_function("from_client", _from_client, 2, deterministic=True)


def conditions(wanted: Filter) -> tuple[str, list[object]]:
    """Write a Filter as SQL over `e` (entry) and `r` (recipient)."""
    found = [("1", []), *_exact(wanted), *_of_entry(wanted), *_of_recipient(wanted)]
    return " AND ".join(term for term, _ in found), [value for _, values in found for value in values]


def _exact(wanted: Filter) -> Iterator[_Term]:
    if wanted.ids:
        yield f"e.id IN ({', '.join('?' * len(wanted.ids))})", [*wanted.ids]
    if wanted.state:
        inside = ["ready", "waiting"] if wanted.state == "queued" else [wanted.state]
        yield f"r.state IN ({', '.join('?' * len(inside))})", [*inside]
    if wanted.born_before:
        yield "e.birth < ?", [wanted.born_before]
    if wanted.born_after:
        yield "e.birth >= ?", [wanted.born_after]


def _of_entry(wanted: Filter) -> Iterator[_Term]:
    for field, place in _ENTRY.items():
        if pattern := getattr(wanted, field):
            yield f"matches(?, {place})", [regex(pattern)]
    if wanted.client:
        yield "from_client(?, json_extract(e.more, '$[1].client_ip'))", [wanted.client]


def _of_recipient(wanted: Filter) -> Iterator[_Term]:
    """Either of two places may match: before `rewrite` or behind it, who delivers or who holds."""
    for pattern, function, *places in (
        (wanted.recipient, "matches", "r.address", "r.original"),
        (wanted.domain, "at_domain", "r.address", "r.original"),
        (
            wanted.plugin,
            "matches",
            f"json_extract({_MORE}, '$.route.plugin')",
            f"json_extract({_MORE}, '$.held_by')",
        ),
    ):
        if pattern:
            either = " OR ".join(f"{function}(?, {place})" for place in places)
            yield f"({either})", [regex(pattern)] * 2


def _matches(*given: apsw.SQLiteValue) -> bool:
    pattern, value = given
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value or "")
    return re.match(str(pattern), text) is not None


def _at_domain(*given: apsw.SQLiteValue) -> bool:
    pattern, address = given
    return isinstance(address, bytes) and _matches(pattern, Address.decode(address).domain)


def _from_client(*given: apsw.SQLiteValue) -> bool:
    wanted, ip = given
    return is_client(str(wanted), str(ip or ""))
