"""maildir2mbox: moves the mail of a Maildir to the end of an mbox (qmail spec 8.4)."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from typing import TYPE_CHECKING, BinaryIO

from gateway.qmail import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.qmail.place import Place

#: Files in tmp/ that nobody has read for this long are left over from a crash.
_LEFT_OVER = 36 * 3600
_FROM = re.compile(rb">*From ")
_BLOCK = 65536


class _LackError(Exception):
    """A variable is not set."""


def main(name: str, _arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    try:
        folder, mailbox, temporary = (_variable(place, one) for one in (b"MAILDIR", b"MAIL", b"MAILTMP"))
        _move(folder, mailbox, temporary)
    except _LackError as error:
        sys.stderr.write(f"{name}: fatal: {error} not set\n")
    except OSError as error:
        where = os.fsdecode(error.filename or "") or "the mailbox"
        sys.stderr.write(f"{name}: fatal: {where!a}: {error.strerror}\n")
    else:
        return 0
    return TEMPORARY


def _variable(place: Place, name: bytes) -> bytes:
    if name not in place.env:
        raise _LackError(name.decode())
    return place.env[name]


def _move(folder: bytes, mailbox: bytes, temporary: bytes) -> None:
    now = time.time()
    _clean(os.path.join(folder, b"tmp"), now)
    messages = sorted(_messages(folder, now))
    if not messages:
        return
    with os.fdopen(os.open(mailbox, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as new:
            while block := old.read(_BLOCK):
                new.write(block)
            for seconds, path in messages:
                _append(new, path, seconds)
            new.flush()
            os.fsync(new.fileno())
        os.rename(temporary, mailbox)
    for _, path in messages:
        try:
            os.unlink(path)
        except OSError as error:
            sys.stderr.write(f"maildir2mbox: warning: {os.fsdecode(path)!a} stays: {error.strerror}\n")


def _clean(folder: bytes, now: float) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not name.startswith(b".") and os.stat(path).st_atime + _LEFT_OVER < now:
            os.unlink(path)


def _messages(folder: bytes, now: float) -> Iterator[tuple[float, bytes]]:
    """Give time and path of each message that is older than now."""
    for part in (b"new", b"cur"):
        for name in os.listdir(os.path.join(folder, part)):
            path = os.path.join(folder, part, name)
            changed = os.stat(path).st_mtime
            if not name.startswith(b".") and changed < now:
                yield changed, path


def _append(mailbox: BinaryIO, path: bytes, seconds: float) -> None:
    with open(path, "rb") as message:
        first = message.readline()
        date = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(int(seconds))).encode()
        mailbox.write(b"From %b %b\n" % (_sender(first), date))
        line = first
        while line:
            mailbox.write(b">" + line if _FROM.match(line) else line)
            last, line = line, message.readline()
        mailbox.write(b"\n" if not first or last.endswith(b"\n") else b"\n\n")


def _sender(first: bytes) -> bytes:
    found = re.match(rb"Return-Path: <(.*)>\n?\Z", first)
    if not found:
        return b"XXX"
    return re.sub(rb"[ \t]", b"-", found[1]) or b"MAILER-DAEMON"
