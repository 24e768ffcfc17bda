"""Writes one message into a Maildir: whole and durable, or not at all.

The file's name comes from the message and the recipient, so that a delivery that is repeated after
a crash finds what it has already done, in `new/` or, read meanwhile, in `cur/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from gateway import point

from .failure import TEMPORARY, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Clocks of file servers may differ from ours by this many seconds.
SKEW = 60.0
#: A message of usual size is one write.
BUFFER = 64 * 1024
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def deliver(folder: Path, name: str, chunks: Iterable[bytes], *, since: float) -> None:
    """Put a message into `folder`/new under `name`; `since` is when the message was born.

    A file of that name that is there already counts as delivered. Raises DeliveryError, always a soft one:
    a missing Maildir is the user's to make.
    """
    if not os.access(f"{folder}/.", os.X_OK):
        raise DeliveryError("4.2.1", "the Maildir cannot be entered")
    try:
        if not is_there(folder, name, since=since):
            point("maildir.write")
            write(folder, name, chunks)
            point("maildir.rename")
            (folder / "tmp" / name).rename(folder / "new" / name)
        point("maildir.folder")
        sync_folder(folder / "new")
        point("maildir.done")
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / "tmp" / name).unlink()
        raise DeliveryError("4.3.0", "the Maildir cannot be written") from error


def is_there(folder: Path, name: str, *, since: float) -> bool:
    """Say whether an earlier attempt has delivered this file."""
    if os.path.lexists(folder / "new" / name):
        return True
    seen = folder / "cur"
    try:
        # Nothing was moved there since the message was born, so the folder need not be read.
        if seen.stat().st_mtime < since - SKEW:
            return False
        with os.scandir(seen) as entries:
            return any(entry.name.partition(":")[0] == name for entry in entries)
    except OSError as error:
        if error.errno in TEMPORARY:
            raise
        return False


def write(folder: Path, name: str, chunks: Iterable[bytes]) -> None:
    """Write `tmp/name` and fsync it; what a dead attempt left there is dropped first."""
    path = folder / "tmp" / name
    try:
        number = os.open(path, NEW, 0o600)
    except FileExistsError:
        path.unlink()
        number = os.open(path, NEW, 0o600)
    with os.fdopen(number, "wb", BUFFER) as file:
        file.writelines(chunks)
        file.flush()
        point("maildir.sync")
        os.fsync(number)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    except OSError as error:
        # Some file systems cannot do this; they say so with EINVAL.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(number)
