"""maildirmake: makes a Maildir (qmail spec 8.4)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, TEMPORARY

if TYPE_CHECKING:
    from gateway.qmail.place import Place


def main(_name: str, arguments: list[bytes], _place: Place) -> int:
    """Run the program."""
    if not arguments:
        sys.stderr.write("maildirmake: usage: maildirmake name\n")
        return PERMANENT
    folder = arguments[0]
    try:
        for one in (folder, *(os.path.join(folder, part) for part in (b"tmp", b"new", b"cur"))):
            os.mkdir(one, 0o700)
    except OSError as error:
        sys.stderr.write(f"maildirmake: fatal: unable to create {os.fsdecode(folder)!a}: {error.strerror}\n")
        return TEMPORARY
    return 0
