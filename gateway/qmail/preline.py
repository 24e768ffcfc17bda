"""preline: gives a program the message behind the lines that mailboxes have (qmail spec 8.3)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT
from gateway.qmail.child import feed
from gateway.qmail.options import OptionError, options

if TYPE_CHECKING:
    from gateway.qmail.place import Place

#: Letter -> the variable whose line it is about: small leaves it out, capital puts it in.
_LINES = {"f": b"UFLINE", "r": b"RPLINE", "d": b"DTLINE"}


def main(_name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    try:
        given, command = options(arguments, "frdFRD")
    except OptionError as error:
        sys.stderr.write(f"preline: {error}\n")
        command = []
    if not command:
        sys.stderr.write("preline: usage: preline [ -frdFRD ] cmd [ arg ... ]\n")
        return PERMANENT
    lacking = [name for name in _LINES.values() if name not in place.env]
    if lacking:
        sys.stderr.write(f"preline: fatal: {lacking[0].decode()} not set\n")
        return PERMANENT
    shown = dict.fromkeys(_LINES, True)
    for letter, _ in given:
        shown[letter.lower()] = letter.isupper()
    return feed("preline", place, command, b"".join(place.env[_LINES[one]] for one in _LINES if shown[one]))
