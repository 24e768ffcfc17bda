"""The rules of tcpserver, read from their source or from tcprules' cdb (qmail spec section 2). Pure: no IO.

Keys are compared as they stand. The first rule for an address counts; a lookup tries the keys in tcpserver's
order and takes the first that is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import ConfigError, Place, Problem, controls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HIGHEST = 255

_VARIABLE = re.compile(r",([^=]*)=(.)(.*?)\2")
_NUMBER = re.compile(r"\d*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one line says of the clients that it names."""

    address: str
    allow: bool
    variables: tuple[tuple[str, str], ...]
    place: Place

    def value(self, name: str) -> str | None:
        """Give a variable that the rule sets; the last one of a name counts, as in an environment."""
        return dict(self.variables).get(name)


class Rules:
    """A rules file; `parse` makes it."""

    def __init__(self, rules: dict[str, Rule]) -> None:
        self._rules = rules
        self._by_name = any("=" in address for address in rules)

    @classmethod
    def parse(cls, text: str, file: str) -> Rules:
        """Read the source text, or a cdb.

        Raises ConfigError with every line that tcprules would not compile.
        """
        cdb = controls.compiled(text, file)
        if cdb is not None:
            return cls(_compiled(cdb, Place(file)))
        rules: dict[str, Rule] = {}
        problems = []
        for number, line in enumerate(text.split("\n"), 1):
            place = Place(file, number)
            try:
                for rule in _parse_line(line, place):
                    rules.setdefault(rule.address, rule)
            except ValueError as error:
                problems.append(Problem(str(error), place))
        if problems:
            raise ConfigError(problems)
        return cls(rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules.values())

    def wants_name(self, ip: str) -> bool:
        """Whether the client's host name could change what `find` says."""
        return self._by_name and ip not in self._rules

    def find(self, ip: str, host: str | None, info: str | None = None) -> Rule | None:
        """Look a client up; `host` is None when it has no name, `info` is what ident said."""
        return next((self._rules[key] for key in _keys(ip, host, info) if key in self._rules), None)


def _keys(ip: str, host: str | None, info: str | None) -> Iterator[str]:
    """Give the keys in tcpserver's order (qmail spec 2.2)."""
    if info is not None:
        yield f"{info}@{ip}"
        if host is not None:
            yield f"{info}@={host}"
    yield ip
    if host is not None:
        yield f"={host}"
    yield from (ip[: at + 1] for at in reversed(range(len(ip))) if ip[at] == ".")
    if host is not None:
        yield from (f"={host[at:]}" for at in range(len(host)) if host[at] == ".")
        yield "="
    yield ""


def _compiled(records: Iterable[tuple[bytes, bytes]], place: Place) -> dict[str, Rule]:
    """Make rules of a cdb: a value is `D` for deny, or `+NAME=value` with a NUL behind each."""
    rules: dict[str, Rule] = {}
    try:
        for raw, value in records:
            key, words = raw.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
            pairs = [word[1:].partition("=") for word in words.split("\0") if word.startswith("+")]
            variables = tuple((name, content) for name, _, content in pairs)
            rules.setdefault(key, Rule(key, not words.startswith("D"), variables, place))
    except ValueError as error:
        raise ConfigError(Problem(str(error), place)) from error
    return rules


def _parse_line(line: str, place: Place) -> list[Rule]:
    """Give the rules of one line: none for a comment, several for a range. Raises ValueError."""
    address, colon, instructions = line.rstrip(" \t").partition(":")
    if line.startswith("#") or not colon:
        return []
    allow = instructions.startswith("allow")
    if not allow and not instructions.startswith("deny"):
        raise ValueError("expected allow or deny after the colon")
    variables = tuple(_variables(instructions[5 if allow else 4 :]))
    return [Rule(key, allow, variables, place) for key in _expand(address)]


def _variables(text: str) -> Iterator[tuple[str, str]]:
    while text:
        match = _VARIABLE.match(text)
        if not match:
            raise ValueError(f'expected ,NAME="value" instead of {text[:40]!r}')
        yield match[1], match[3]
        text = text[match.end() :]


def _expand(address: str) -> list[str]:
    """Write the first numeric range of an address out: `10.0.1-2.` is `10.0.1.` and `10.0.2.`."""
    head, dash, tail = address.partition("-")
    if not dash or "=" in address or "@" in address:
        return [address]
    prefix, dot, low = head.rpartition(".")
    high, dot_behind, rest = tail.partition(".")
    first, last = _number(low), min(_number(high), HIGHEST)
    return [f"{prefix}{dot}{n}{dot_behind}{rest}" for n in range(first, last + 1)]


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number, so this is no range of addresses")
    return int(text or 0)
