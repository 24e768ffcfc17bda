"""bouncesaying and except: exit codes for a `.qmail` line, by those of a program (qmail spec 8.3)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, TEMPORARY
from gateway.qmail.child import CrashError, run

if TYPE_CHECKING:
    from gateway.qmail.place import Place

_USAGE = {"bouncesaying": "error [ program [ arg ... ] ]", "except": "program [ arg ... ]"}


def main(name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    if not arguments:
        sys.stderr.write(f"{name}: usage: {name} {_USAGE[name]}\n")
        return PERMANENT
    text, command = (arguments[0], arguments[1:]) if name == "bouncesaying" else (b"", arguments)
    try:
        code = run(place, command) if command else 0
    except CrashError:
        code = TEMPORARY
    if code == TEMPORARY:
        sys.stderr.write(f"{name}: fatal: the program failed for now\n")
        return TEMPORARY
    if code:
        return 0
    if text:
        os.write(2, text + b"\n")
    return PERMANENT
