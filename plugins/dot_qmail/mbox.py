"""Appends one message to an mbox file: locked, quoted, and taken back if it does not fit."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from itertools import chain
from typing import TYPE_CHECKING

from gateway import point

from .failure import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: How long to wait for another program's lock, and between two tries, in seconds.
LOCK_WAIT = 30.0
LOCK_TRY = 0.1


def deliver(path: Path, head: bytes, lines: Iterable[bytes]) -> None:
    """Append `head`, the quoted lines of a message and an empty line.

    Raises DeliveryError, always a soft one.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o600)
    except (OSError, ValueError) as error:
        raise DeliveryError("4.2.1", "the mailbox file cannot be opened") from error
    # Unbuffered, so that nothing is written behind a truncation.
    with os.fdopen(number, "ab", buffering=0) as file:
        locked = _lock(number)
        end = os.fstat(number).st_size
        try:
            point("mbox.locked")
            for piece in chain([head], lines, [b"\n"]):
                _write(number, piece)
            point("mbox.sync")
            os.fsync(file.fileno())
            point("mbox.done")
        except OSError as error:
            if locked:
                with contextlib.suppress(OSError):
                    os.ftruncate(number, end)
            raise DeliveryError("4.3.0", "the mailbox file cannot be written") from error


def _lock(number: int) -> bool:
    """Take the lock, waiting for another holder; False where files cannot be locked. Raises DeliveryError."""
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if time.monotonic() > deadline:
                raise DeliveryError("4.3.0", "the mailbox file is locked by another program") from error
            time.sleep(LOCK_TRY)
        else:
            return True


def _write(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
