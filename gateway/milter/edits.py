"""Header fields that a filter changes: what to tell an MTA, and what an MTA makes of it. Pure: no IO.

An index of `ChangeHeader` counts the fields of that name which the filter saw, from 1. An index of
`InsertHeader` counts all fields as delivered, from 0, and there the MTA's own Received is one more.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from gateway.errors import MilterError
from gateway.milter import packets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    HeaderEdit = packets.AddHeader | packets.InsertHeader | packets.ChangeHeader

_FIELD = re.compile(rb"[^\n]*\n(?:[ \t][^\n]*\n)*|[^\n]+\Z")
_NAME = re.compile(rb"[!-9;-~]+")
#: NUL, a CR alone, or a line end without a fold behind it: a second field in the place of one.
_INJECTION = re.compile(rb"[\0\r]|\n(?![ \t])")
#: Fields times fields that are compared; a larger change is told field by field.
_COMPARED = 1_000_000


def split_fields(header: bytes) -> list[bytes]:
    """Split a header block into its fields, each with its line ends."""
    return _FIELD.findall(header)


def name_and_value(field: bytes, *, leading_space: bool) -> tuple[bytes, bytes]:
    """Take a field apart as the wire has it: folds as LF, and the space behind the colon only if agreed."""
    name, _, value = field.removesuffix(b"\n").partition(b":")
    return name, value if leading_space else value.removeprefix(b" ")


def join_field(name: bytes, value: bytes, *, leading_space: bool) -> bytes:
    """Make a field of what came by the wire. Raises MilterError for what would be none, or two."""
    value = value.replace(b"\r\n", b"\n").rstrip(b"\n")
    if not _NAME.fullmatch(name.rstrip(b" \t")) or _INJECTION.search(value):
        raise MilterError(f"{name[:80]!r} is not one header field")
    return name + (b":" if leading_space else b": ") + value + b"\n"


# The filter's side: what a plugin has done, as edits


def header_edits(before: Sequence[bytes], after: Sequence[bytes], *, leading_space: bool) -> list[HeaderEdit]:
    """Say how one list of fields becomes the other, so that no edit shifts the index of the next."""
    changed: list[tuple[int, bytes]] = []
    deleted: list[int] = []
    inserted: list[int] = []
    for tag, b0, b1, a0, a1 in _differences(before, after):
        same = 0
        while tag == "replace" and b0 + same < b1 and a0 + same < a1:
            old, new = before[b0 + same], after[a0 + same]
            # An empty value would delete the field.
            if _key(old) != _key(new) or not name_and_value(new, leading_space=leading_space)[1]:
                break
            changed.append((b0 + same, new))
            same += 1
        deleted += range(b0 + same, b1)
        inserted += range(a0 + same, a1)
    numbers = _occurrences(before)
    edits: list[HeaderEdit] = []
    for i, field in changed:
        name, value = name_and_value(field, leading_space=leading_space)
        edits.append(packets.ChangeHeader(numbers[i], name, value))
    for i in reversed(deleted):
        name, _ = name_and_value(before[i], leading_space=leading_space)
        edits.append(packets.ChangeHeader(numbers[i], name, b""))
    return edits + _insertions(inserted, after, leading_space=leading_space)


def _differences(before: Sequence[bytes], after: Sequence[bytes]) -> Iterable[tuple[str, int, int, int, int]]:
    """Compare what lies between the fields that both have in front and behind."""
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    if len(old) * len(new) > _COMPARED:
        return [("replace", head, head + len(old), head, head + len(new))]
    found = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [
        (tag, b0 + head, b1 + head, a0 + head, a1 + head) for tag, b0, b1, a0, a1 in found if tag != "equal"
    ]


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same


def _insertions(inserted: Sequence[int], after: Sequence[bytes], *, leading_space: bool) -> list[HeaderEdit]:
    """Put what is new on top above the MTA's Received, what is new at the end there, and the rest between."""
    top = next((i for i, at in enumerate(inserted) if at != i), len(inserted))
    end, below = len(after), set(inserted[top:])
    while end - 1 in below:
        end -= 1
    edits: list[HeaderEdit] = []
    for i, at in enumerate(inserted):
        name, value = name_and_value(after[at], leading_space=leading_space)
        if at >= end:
            edits.append(packets.AddHeader(name, value))
        else:
            edits.append(packets.InsertHeader(at if i < top else at + 1, name, value))
    return edits


def _key(field: bytes) -> bytes:
    return field.partition(b":")[0].rstrip(b" \t").lower()


def _occurrences(fields: Sequence[bytes]) -> list[int]:
    """Number each field among those of its name, from 1."""
    seen: dict[bytes, int] = {}
    numbers = []
    for field in fields:
        key = _key(field)
        seen[key] = seen.get(key, 0) + 1
        numbers.append(seen[key])
    return numbers


# The MTA's side: a header block that edits are applied to


class Fields:
    """The fields of a message, of which a filter saw all but one: the MTA's own Received.

    `hidden` is its index; None when the message has none, and then it is counted as if it stood on top.
    """

    def __init__(self, header: bytes, hidden: int | None = None, *, leading_space: bool = False) -> None:
        self.fields = split_fields(header)
        if self.fields and not self.fields[-1].endswith(b"\n"):
            self.fields[-1] += b"\n"
        self._hidden = self.fields[hidden] if hidden is not None else None
        self._leading_space = leading_space

    def __bytes__(self) -> bytes:
        return b"".join(self.fields)

    def shown(self) -> list[tuple[bytes, bytes]]:
        """Give what the filter sees: (name, value)."""
        return [
            name_and_value(field, leading_space=self._leading_space)
            for field in self.fields
            if field is not self._hidden and b":" in field
        ]

    def apply(self, edit: HeaderEdit) -> None:
        """Do one edit; each sees those before it. Raises MilterError."""
        if isinstance(edit, packets.AddHeader):
            self.fields.append(self._field(edit.name, edit.value))
        elif isinstance(edit, packets.InsertHeader):
            self._insert(edit)
        else:
            self._change(edit)

    def _insert(self, edit: packets.InsertHeader) -> None:
        index = edit.index if self._hidden is not None else max(0, edit.index - 1)
        self.fields.insert(index, self._field(edit.name, edit.value))

    def _change(self, edit: packets.ChangeHeader) -> None:
        """Change, or delete, the n-th of a name; one that is not there is added (deleted: nothing to do)."""
        wanted = edit.name.rstrip(b" \t").lower()
        same = [
            i for i, field in enumerate(self.fields) if field is not self._hidden and _key(field) == wanted
        ]
        number = max(1, edit.index)
        if number > len(same):
            if edit.value:
                self.fields.append(self._field(edit.name, edit.value))
        elif edit.value:
            self.fields[same[number - 1]] = self._field(edit.name, edit.value)
        else:
            del self.fields[same[number - 1]]

    def _field(self, name: bytes, value: bytes) -> bytes:
        return join_field(name, value, leading_space=self._leading_space)
