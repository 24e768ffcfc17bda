"""A Filter as SQL: the functions that SQLite does not have, and the conditions that call them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway import Address
from gateway.queue import is_client, regex

from .rows import encode

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
            yield f"matches(?, {place})", [encode(regex(pattern))]
    if wanted.client:
        yield "from_client(?, json_extract(e.more, '$[1].client_ip'))", [wanted.client]


def _of_recipient(wanted: Filter) -> Iterator[_Term]:
    """One of several places must match: before `rewrite` or behind it, who delivers or who holds."""
    places = (
        (wanted.recipient, ["matches(?, r.address)", "matches(?, r.original)"]),
        (wanted.domain, ["at_domain(?, r.address)", "at_domain(?, r.original)", _more("route.destination")]),
        (wanted.plugin, [_more("route.plugin"), _more("held_by")]),
    )
    for pattern, either in places:
        if pattern:
            yield f"({' OR '.join(either)})", [encode(regex(pattern))] * len(either)


def _more(path: str) -> str:
    return f"(r.more != '' AND matches(?, json_extract(r.more, '$.{path}')))"


def _matches(*given: apsw.SQLiteValue) -> bool:
    pattern, value = map(_text, given)
    return bool(value) and re.match(pattern, value) is not None


def _at_domain(*given: apsw.SQLiteValue) -> bool:
    pattern, address = given
    return re.match(_text(pattern), Address(_text(address)).domain) is not None


def _from_client(*given: apsw.SQLiteValue) -> bool:
    wanted, ip = given
    return is_client(_text(wanted), _text(ip))


def _text(value: apsw.SQLiteValue) -> str:
    """Read what was bound or stored: bytes, where it may hold some that are no UTF-8."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value or "")
