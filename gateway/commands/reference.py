"""Writes reference pages from the code, so that they cannot differ from it."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from typing import TYPE_CHECKING

from gateway import events

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVENTS_HEAD = """\
# Events

Every event is one line of JSON. It begins with `time` (RFC 3339, UTC, microseconds), `event` (its name),
`schema`, `severity`, `class`, `host`, `stream`, `sequence` (no gap within a stream, also over restarts) and
`id`. A field that is empty is left out.

The class says how much an event matters: `fate` is what became of a message, `security` who tried what,
`other` the rest. Events of the names marked "once" have an `id` made from message, recipient and attempt: a
second one with the same `id` is a repeat of the same fact and may be dropped.

This page is made from `gateway/events.py` by `make docs`.
"""


def events_page() -> str:
    """Write `docs/reference/events.md`."""
    classes = {node.name: node for node in ast.parse(_source()).body if isinstance(node, ast.ClassDef)}
    parts = [_EVENTS_HEAD, "## What every event may carry\n", *_rows(classes["Event"], events.Event)]
    for name, cls in sorted(events.VOCABULARY.items()):
        once = ", once" if cls.ONCE else ""
        parts += [f"\n## `{name}`\n", f"{cls.CLASS}, {cls.SEVERITY}{once}. {inspect.getdoc(cls)}\n"]
        parts += _rows(classes[cls.__name__], cls)
    return "\n".join(parts).rstrip() + "\n"


def _rows(node: ast.ClassDef, cls: type[events.Event]) -> Iterator[str]:
    """Write the fields that a class adds as a table, with their `#:` comments."""
    lines = _source().splitlines()
    own = [one for one in node.body if isinstance(one, ast.AnnAssign) and _is_field(one)]
    if own:
        yield "| field | type | |\n|---|---|---|"
    keys = dict(zip((one.name for one in fields(cls)), cls.KEYS, strict=True))
    for one in own:
        kind = ast.unparse(one.annotation).replace("|", "or")
        yield f"| `{keys[ast.unparse(one.target)]}` | {kind} | {_comment(lines, one.lineno)} |"


def _is_field(node: ast.AnnAssign) -> bool:
    return not ast.unparse(node.annotation).startswith("ClassVar")


def _comment(lines: list[str], number: int) -> str:
    """Give the `#:` comment that stands above a line."""
    found: list[str] = []
    while (above := lines[number - 2].strip()).startswith("#:"):
        found.insert(0, above[2:].strip())
        number -= 1
    return " ".join(found)


def _source() -> str:
    return inspect.getsource(events)
