"""predate and mailsubj: small fields for scripts (qmail spec 8.4)."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, inject
from gateway.qmail.child import feed

if TYPE_CHECKING:
    from gateway.qmail.place import Place


def main(name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    return _predate(arguments, place) if name == "predate" else _mailsubj(arguments, place)


def _predate(command: list[bytes], place: Place) -> int:
    if not command:
        sys.stderr.write("predate: usage: predate program [ arg ... ]\n")
        return PERMANENT
    now = time.localtime()
    date = f"Date: {now.tm_mday} {time.strftime('%b %Y %H:%M:%S %z', now)}\n"
    return feed("predate", place, command, date.encode())


def _mailsubj(arguments: list[bytes], place: Place) -> int:
    if not arguments:
        sys.stderr.write("mailsubj: usage: mailsubj subject [ recip ... ]\n")
        return PERMANENT
    header = b"Subject: %b\nTo: %b\n\n" % (arguments[0], b" ".join(arguments[1:]))
    message = inject.Injection(place, [], [])
    with open(0, "rb", closefd=False) as body:
        return inject.inject("mailsubj", message, io.BytesIO(header), body)
