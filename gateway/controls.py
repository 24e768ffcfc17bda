"""qmail's control files: its three readers and its map (qmail spec section 1.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def read_line(path: Path) -> str | None:
    """Read a single-string file: its first line without trailing blanks; None when it is missing."""
    text = _read(path)
    return None if text is None else text.partition("\n")[0].rstrip(" \t\n")


def read_integer(path: Path, default: int) -> int:
    """Read the longest digit prefix of the first line, or give the default."""
    digits = re.match(r"\d+", read_line(path) or "")
    return int(digits[0]) if digits else default


def read_list(path: Path) -> list[tuple[int, str]] | None:
    """Read (line number, text) of each line that counts; None when the file is missing.

    Trailing blanks go, leading ones stay; empty lines and lines that start with `#` are dropped.
    """
    text = _read(path)
    return None if text is None else list(_lines(text))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.rstrip(" \t")
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def colon_map(lines: Iterable[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Make key -> (line number, value) of `key:value` lines; keys in lower case, the last line wins.

    Lines without a colon do not count.
    """
    return {key.lower(): (n, value) for n, line in lines for key, colon, value in [line.partition(":")] if colon}


def domain_keys(domain: str) -> Iterator[str]:
    """Give the keys that qmail probes for a domain: itself, then each suffix that starts at a dot.

    `a.b.c` gives `a.b.c`, `.b.c`, `.c` (qmail spec 1.4).
    """
    yield domain
    at = domain.find(".", 1) if domain.startswith(".") else domain.find(".")
    while at >= 0:
        yield domain[at:]
        at = domain.find(".", at + 1)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
