"""The rules of `.qmail`: file names, instruction lines, variables (qmail spec section 6). Pure: no IO."""

from __future__ import annotations

import re
import string
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway import quote_local_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Kind = Literal["maildir", "mbox", "program", "forward", "forward_only"]

_SAFE = str.maketrans(string.ascii_uppercase + ".", string.ascii_lowercase + ":")
_FROM = re.compile(rb"^(?=>*From )", re.MULTILINE)
#: A line longer than this is passed on in pieces.
LONG_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line that does something."""

    kind: Kind
    #: A path, a command or an address, as it stands in the file.
    text: str
    #: Counts from 1.
    line: int


class BlankFirstLineError(ValueError):
    """The first line is blank: qmail takes that for a file that is being edited."""


def parse(text: str) -> list[Instruction]:
    """Read the lines of a `.qmail` file (spec 6.6). Raises BlankFirstLineError."""
    found = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip(" \t").partition("\0")[0]
        if not line and number == 1:
            raise BlankFirstLineError
        if line and (instruction := _instruction(line, number)):
            found.append(instruction)
    return found


def _instruction(line: str, number: int) -> Instruction | None:
    match line[0]:
        case "#":
            return None
        case "." | "/":
            return Instruction("maildir" if line.endswith("/") else "mbox", line, number)
        case "|":
            return Instruction("program", line[1:], number)
        case "+":
            return Instruction("forward_only", "", number) if line == "+list" else None
        case "&":
            return Instruction("forward", line[1:], number)
        case _:
            return Instruction("forward", line, number)


def safe_extension(ext: str) -> str:
    """Give an extension as it stands in file names: ASCII letters lowered, dots as colons."""
    return ext.translate(_SAFE)


def candidates(dash: str, ext: str) -> Iterator[tuple[str, str | None]]:
    """Give (file name, DEFAULT) of every file that may control an address, the nearest first (spec 6.5).

    DEFAULT is the part of the extension that `default` stands for, None where the variable is unset.
    """
    safe = safe_extension(ext)
    yield f".qmail{dash}{safe}", ext[-len("default") :] if safe.endswith("default") else None
    for i in range(len(safe), -1, -1):
        if i == 0 or safe[i - 1] == "-":
            yield f".qmail{dash}{safe[:i]}default", ext[i:]


def delivered_to(local: str, host: str) -> str:
    """Give DTLINE, which also detects loops."""
    return "Delivered-To: " + f"{local}@{host}".replace("\n", "_") + "\n"


def return_path(sender: str) -> str:
    """Give RPLINE."""
    local, at, host = sender.rpartition("@") if "@" in sender else (sender, "", "")
    quoted = quote_local_part(local) if sender else ""
    return f"Return-Path: <{quoted}{at}{host}>".replace("\n", "_") + "\n"


def from_line(sender: str, now: float) -> str:
    """Give UFLINE, the line that separates messages in an mbox."""
    name = re.sub(r"[ \t\n]", "-", sender) or "MAILER-DAEMON"
    return f"From {name} {time.strftime('%a %b %d %H:%M:%S %Y', time.gmtime(now))}\n"


def owner_address(sender: str, local: str, host: str, *, owner: bool, owner_default: bool) -> str:
    """Give NEWSENDER: list owners take the bounces of what their list forwards (spec 6.7)."""
    if sender in ("", "#@[]") or not owner:
        return sender
    return f"{local}-owner-@{host}-@[]" if owner_default else f"{local}-owner@{host}"


def variables(local: str, host: str, ext: str) -> dict[str, str]:
    """Give the variables that come from the address alone (spec 6.8)."""
    found = {"LOCAL": local, "HOST": host, "RECIPIENT": f"{local}@{host}", "EXT": ext}
    for n in "234":
        host = host.rpartition(".")[0] if "." in host else host
        ext = ext.partition("-")[2]
        found |= {f"HOST{n}": host, f"EXT{n}": ext}
    return found


def is_loop(header: bytes, line: bytes) -> bool:
    """Say whether this very Delivered-To line already stands in the header (spec 6.9)."""
    return header.startswith(line) or b"\n" + line in header


def quote_mbox(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Put one more `>` before each `From ` line (mboxrd); a missing last line end is added."""
    rest, inside = b"", False
    for chunk in chunks:
        data = rest + chunk
        end = data.rfind(b"\n") + 1 or (len(data) if len(data) > LONG_LINE else 0)
        rest = data[end:]
        if end:
            yield _quote(data[:end], inside=inside)
            inside = data[end - 1 : end] != b"\n"
    if rest:
        yield _quote(rest, inside=inside)
    if rest or inside:
        yield b"\n"


def _quote(lines: bytes, *, inside: bool) -> bytes:
    """Quote lines; `inside` says that the first one has begun before."""
    if not inside:
        return _FROM.sub(b">", lines)
    head, end, tail = lines.partition(b"\n")
    return head + end + _FROM.sub(b">", tail)
