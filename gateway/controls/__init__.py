"""qmail's control files: its three readers and its map (qmail spec section 1.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

from gateway.address import lower
from gateway.controls.cdb import Cdb, is_cdb
from gateway.errors import ConfigError, Place, Problem

T = TypeVar("T")


def read_line(path: Path) -> str | None:
    """Read a single-string file: its first line without trailing blanks; None when it is missing."""
    text = _read(path)
    return None if text is None else text.partition("\n")[0].rstrip(" \t\n")


def read_integer(path: Path, default: int) -> int:
    """Read the longest digit prefix of the first line, or give the default."""
    digits = re.match(r"[0-9]+", read_line(path) or "")
    return int(digits[0]) if digits else default


def read_list(path: Path) -> list[tuple[int, str]] | None:
    """Read (line number, text) of each line that counts; None when the file is missing.

    Trailing blanks go, leading ones stay; empty lines and lines that start with `#` are dropped.
    """
    text = _read(path)
    return None if text is None else parse_list(text)


def parse_list(text: str) -> list[tuple[int, str]]:
    """Do to a text what `read_list` does to a file."""
    return list(_lines(text))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.rstrip(" \t")
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def colon_map(lines: Iterable[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Make key -> (line number, value) of `key:value` lines; keys in lower case, the last line wins.

    Lines without a colon do not count.
    """
    return {
        lower(key): (n, value) for n, line in lines for key, colon, value in [line.partition(":")] if colon
    }


def domain_keys(domain: str) -> Iterator[str]:
    """Give the keys that qmail probes for a domain: itself, then each suffix that starts at a dot.

    `a.b.c` gives `a.b.c`, `.b.c`, `.c` (qmail spec 1.4).
    """
    yield domain
    at = domain.find(".", 1) if domain.startswith(".") else domain.find(".")
    while at >= 0:
        yield domain[at:]
        at = domain.find(".", at + 1)


class ControlFile(Generic[T]):
    """A file that people edit while the gateway runs: what was made of it is made anew when it changes.

    `parse` takes the text and the file's name. Raises ConfigError when the file cannot be read at first.
    """

    def __init__(self, path: Path, parse: Callable[[str, str], T], setting: str, place: Place | None) -> None:
        self.path = path
        self._parse = parse
        self._seen: tuple[int, ...] = ()
        self._value: T | None = None
        try:
            self.get()
        except OSError as error:
            raise ConfigError(Problem(f"{setting}: {path}: {error.strerror}", place)) from error

    def get(self) -> T:
        """Give what the file says now. Raises OSError, and what `parse` raises, until it is mended."""
        status = self.path.stat()
        seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._value is None or seen != self._seen:
            self._value = self._parse(_decode(self.path.read_bytes()), str(self.path))
            self._seen = seen
        return self._value


def domain_table(text: str, name: str) -> dict[str, str]:
    """Make domain -> `file:line` of a list of domains; for a ControlFile."""
    return {lower(line): f"{name}:{number}" for number, line in parse_list(text)}


def account_table(text: str, name: str) -> dict[str, tuple[str, str]]:
    """Make key -> (value, `file:line`) of `key:value` lines; for a ControlFile."""
    return {key: (value, f"{name}:{n}") for key, (n, value) in colon_map(parse_list(text)).items()}


def domain_cdb(text: str, name: str) -> Cdb:
    """Make a cdb of what a ControlFile read: the keys are domains. Raises ConfigError."""
    found = compiled(text, name)
    if found is None:
        raise ConfigError(Problem("is no cdb: a list of domains is named by `file`", Place(name)))
    return found


def compiled(text: str, name: str) -> Cdb | None:
    """Make a cdb of what a ControlFile read, if it is one and no list. Raises ConfigError."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        return Cdb(data) if is_cdb(data) else None
    except ValueError as error:
        raise ConfigError(Problem(str(error), Place(name))) from error


def _read(path: Path) -> str | None:
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return None


def _decode(data: bytes) -> str:
    """Keep every byte: qmail takes no CR for a line end, and a cdb is all bytes."""
    return data.decode("utf-8", "surrogateescape")
