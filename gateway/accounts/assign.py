"""Reads `users/assign` and `users/cdb`: who controls which local parts (qmail spec 6.2). Pure: no IO."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import controls
from gateway.address import lower
from gateway.envelope import Account

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A line needs this many colons: one behind the key, six behind the strings.
COLONS = 7
#: user, uid, gid, home, dash, ext.
STRINGS = 6


class AssignError(ValueError):
    """A line that qmail-newu would refuse; holds its number."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


@dataclass(slots=True)
class Assignments:
    """The lines of one file: key in lower case -> the account it stands for."""

    exact: dict[str, Account] = field(default_factory=dict)
    prefixes: dict[str, Account] = field(default_factory=dict)

    def find(self, local: str) -> Account | None:
        """Give the account of a local part: an exact line first, else the longest prefix."""
        folded = lower(local)
        if found := self.exact.get(folded):
            return found
        for end in range(len(folded), -1, -1):
            if found := self.prefixes.get(folded[:end]):
                return Account(
                    found.user,
                    found.uid,
                    found.gid,
                    found.home,
                    found.dash,
                    found.ext + local[end:],
                    found.rule,
                )
        return None


def parse_assign(text: str, name: str = "users/assign") -> Assignments:
    """Read a whole file, source or cdb; the first of two lines with one key wins. Raises AssignError."""
    cdb = controls.compiled(text, name)
    if cdb is not None:
        return _compiled(cdb, name)
    found = Assignments()
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("."):
            return found
        kind, key, account = _line(line, number, name)
        (found.prefixes if kind == "+" else found.exact).setdefault(lower(key), account)
    raise AssignError(text.count("\n") + 1, "the last line must be a dot")


def _compiled(records: Iterable[tuple[bytes, bytes]], name: str) -> Assignments:
    """Make accounts of a cdb: `!local` and a NUL is an exact key, `!loc` a prefix, "" qmail's own index."""
    found = Assignments()
    for raw, value in records:
        key = raw.decode("utf-8", "surrogateescape")
        if not key.startswith("!"):
            continue
        strings = value.decode("utf-8", "surrogateescape").split("\0")[:STRINGS]
        if len(strings) < STRINGS:
            raise AssignError(0, f"{name}: the record of {key[1:]} is not whole")
        user, uid, gid, home, dash, ext = strings
        account = Account(user, _number(uid), _number(gid), home, dash, ext, f"{name}: {key[1:]}")
        table = found.exact if key.endswith("\0") else found.prefixes
        table.setdefault(key[1:].removesuffix("\0"), account)
    return found


def _line(line: str, number: int, name: str) -> tuple[str, str, Account]:
    if not line:
        raise AssignError(number, "an empty line, or no line with a dot at the end")
    if line.startswith(":") or "\0" in line:
        raise AssignError(number, "a line starts with = or +, and holds no NUL")
    if line.count(":") < COLONS:
        raise AssignError(number, "write =local:user:uid:gid:home:dash:ext:")
    key, user, uid, gid, home, dash, ext, _ = line.split(":", COLONS)
    return line[0], key[1:], Account(user, _number(uid), _number(gid), home, dash, ext, f"{name}:{number}")


def _number(text: str) -> int:
    """Read as qmail did: leading digits; none gives 0, and nothing is ever delivered as uid 0."""
    digits = re.match(r"[0-9]+", text)
    return int(digits[0]) if digits else 0
