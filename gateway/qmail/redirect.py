"""forward and condredirect: send the message of a `.qmail` program line elsewhere (qmail spec 8.3)."""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, TEMPORARY, queueing
from gateway.qmail.child import CrashError, run

if TYPE_CHECKING:
    from gateway.qmail.place import Place

#: What tells qmail-local that the message is dealt with, and the lines below are not for it.
_STOP = 99


class _LackError(Exception):
    """A variable that qmail-local sets is not there."""


def main(name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    work = _forward if name == "forward" else _condredirect
    try:
        return work(arguments, place)
    except _LackError as error:
        text, code = f"{error} not set", PERMANENT
    except queueing.Failure as failure:
        text, code = str(failure), failure.code
    except CrashError:
        text, code = "the program failed for now", TEMPORARY
    sys.stderr.write(f"{name}: fatal: {text}\n")
    return code


def _forward(arguments: list[bytes], place: Place) -> int:
    _send("forward", place, _variable(place, "NEWSENDER"), arguments)
    return 0


def _condredirect(arguments: list[bytes], place: Place) -> int:
    if len(arguments) < 2:  # noqa: PLR2004 - an address and a program
        sys.stderr.write("condredirect: usage: condredirect newaddress program [ arg ... ]\n")
        return PERMANENT
    code = run(place, arguments[1:])
    if code == TEMPORARY:
        raise CrashError
    if code:
        return 0
    sender = _variable(place, "SENDER")
    os.lseek(0, 0, os.SEEK_SET)
    _send("condredirect", place, sender, arguments[:1])
    return _STOP


def _send(name: str, place: Place, sender: bytes, recipients: list[bytes]) -> None:
    message = itertools.chain([_variable(place, "DTLINE")], queueing.read(0))
    number = queueing.enqueue(place, message, sender, recipients)
    sys.stderr.write(f"{name}: qp {number}\n")


def _variable(place: Place, name: str) -> bytes:
    value = place.env.get(name.encode())
    if value is None:
        raise _LackError(name)
    return value
