"""The syntax of /etc/aliases and of the lists that it includes. Pure: no IO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import ConfigError, Place, Problem, controls, lower

if TYPE_CHECKING:
    from collections.abc import Iterator

INCLUDE = ":include:"
LONGEST = 899

_NAME = re.compile(r'\s*(?:"([^"]+)"|([^":]+))\s*:(.*)', re.DOTALL)
#: What targets are made of: a quoted piece, the comma between two, a plain piece; else a lone quote.
_PIECES = re.compile(r'"((?:[^"\\]|\\.)*)"|(,)|([^",]+)|(")')
_ESCAPED = re.compile(r"\\(.)")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Alias:
    """What a name stands for, and where that is written."""

    name: str
    targets: tuple[str, ...]
    place: str


def parse_aliases(text: str, file: str) -> dict[str, Alias]:
    """Read the syntax of /etc/aliases: name -> what it stands for. Raises ConfigError."""
    found: dict[str, Alias] = {}
    for number, line in _logical_lines(text):
        place = Place(file, number)
        match = _NAME.fullmatch(line)
        if not match:
            raise ConfigError(Problem("should be `name: address, address`", place))
        name = (match[1] or match[2]).strip()
        targets = tuple(split(match[3], place))
        if not targets:
            raise ConfigError(Problem(f"{name}: stands for nothing", place))
        if lower(name) in found:
            raise ConfigError(Problem(f"{name} stands in {found[lower(name)].place} already", place))
        found[lower(name)] = Alias(name, targets, str(place))
    return found


def parse_list(text: str, file: str) -> tuple[str, ...]:
    """Read the addresses of an included list. Raises ConfigError."""
    found: list[str] = []
    for number, line in controls.parse_list(text):
        place = Place(file, number)
        found += split(line, place)
        if any(target.startswith(INCLUDE) for target in found):
            raise ConfigError(Problem("a list cannot include another", place))
    return tuple(found)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Join lines that begin with a blank to the one before; comments and empty lines do not count."""
    begun, number = "", 0
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t" and begun:
            begun += line
            continue
        if begun:
            yield number, begun
        begun, number = line, n
    if begun:
        yield number, begun


def split(text: str, place: Place | None) -> Iterator[str]:
    """Split at commas outside quotes, take quotes away, and check each address. Raises ConfigError."""
    parts = [""]
    for quoted, comma, plain, odd in _PIECES.findall(text):
        if odd or len(plain.split()) > 1:
            raise ConfigError(Problem(f"a comma or a quote is missing in {text.strip()}", place))
        if comma:
            parts.append("")
        else:
            parts[-1] += plain.strip() or _ESCAPED.sub(r"\1", quoted)
    yield from (checked(part, place) for part in parts if part)


def checked(target: str, place: Place | None) -> str:
    """Give a target that is an address or a list. Raises ConfigError."""
    if target.startswith(("|", "/")):
        kind = "program" if target.startswith("|") else "file"
        raise ConfigError(Problem(f"{target} is a {kind}: write it into a .qmail file", place))
    if target.startswith(":") and not target.startswith(f"{INCLUDE}/"):
        raise ConfigError(Problem(f"{target}: only :include:/path is known", place))
    if not target.removeprefix("\\").strip() or _CONTROLS.search(target) or len(target) > LONGEST:
        raise ConfigError(Problem(f"{target[:80]!r} is no address", place))
    return target
