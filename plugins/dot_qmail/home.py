"""The home of an account: whether it is safe, and which `.qmail` file controls an address."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from .failure import TEMPORARY, DeliveryError, NoMailboxError
from .parser import candidates, safe_extension

#: A bigger `.qmail` file is taken for a mistake.
LONGEST_FILE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Control:
    """The file that controls an address."""

    #: Its path, "" when the default delivery applies because there is none.
    path: str
    text: str
    #: What the variable DEFAULT holds, None when it is unset.
    default: str | None = None
    #: The owner may execute it: only forwards are allowed in it.
    forward_only: bool = False


def check_home(home: str, *, editing_allowed: bool = False) -> None:
    """Refuse, for now, a home that others may write, or whose owner is editing (sticky bit).

    Raises DeliveryError.
    """
    if not home.startswith("/"):
        raise DeliveryError("4.3.0", "the account's home is no absolute path")
    try:
        mode = Path(home).stat().st_mode
    except (OSError, ValueError) as error:
        raise DeliveryError("4.3.0", "the account's home cannot be reached") from error
    if not stat.S_ISDIR(mode) or not os.access(home, os.X_OK):
        raise DeliveryError("4.3.0", "the account's home cannot be entered")
    if mode & stat.S_IWOTH:
        raise DeliveryError("4.7.0", "the account's home is writable for everybody")
    if mode & stat.S_ISVTX and not editing_allowed:
        raise DeliveryError("4.2.1", "the account's home is sticky: its user is editing the .qmail files")


def find_control(home: str, dash: str, ext: str) -> Control:
    """Find and read the file that controls an address (spec 6.5).

    Raises NoMailboxError when there is none and the address has an extension, DeliveryError on any doubt.
    """
    for name, default in candidates(dash, ext):
        path = f"{home}/{name}"
        found = _read(path)
        if found is not None:
            text, forward_only = found
            return Control(path, text, default, forward_only and bool(text))
    if dash:
        raise NoMailboxError
    return Control("", "")


def owner_files(home: str, dash: str, ext: str) -> tuple[bool, bool]:
    """Say whether `-owner` and `-owner-default` of this address exist. Raises DeliveryError on doubt."""
    base = f"{home}/.qmail{dash}{safe_extension(ext)}-owner"
    owner = _exists(base)
    return owner, owner and _exists(f"{base}-default")


def _read(path: str) -> tuple[str, bool] | None:
    """Read a regular file: (text, executable); None when there is no such file."""
    try:
        # Without O_NONBLOCK a FIFO would hang the delivery.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        return None
    except OSError as error:
        if error.errno in TEMPORARY or error.errno in (errno.EPERM, errno.EACCES):
            raise DeliveryError("4.3.0", "a .qmail file cannot be read") from error
        return None
    try:
        return _regular(number)
    finally:
        os.close(number)


def _regular(number: int) -> tuple[str, bool] | None:
    """Read an open file; None when it is no regular one. Raises DeliveryError when it may not be trusted."""
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        return None
    if status.st_mode & stat.S_IWOTH:
        raise DeliveryError("4.7.0", "a .qmail file is writable for everybody")
    if status.st_size > LONGEST_FILE:
        raise DeliveryError("4.3.0", "a .qmail file is too large")
    try:
        raw = os.read(number, status.st_size)
    except OSError as error:
        raise DeliveryError("4.3.0", "a .qmail file cannot be read") from error
    return raw.decode("utf-8", "surrogateescape"), bool(status.st_mode & stat.S_IXUSR)


def _exists(path: str) -> bool:
    try:
        Path(path).stat()
    except ValueError:
        return False
    except OSError as error:
        if error.errno in TEMPORARY:
            raise DeliveryError("4.3.0", "an owner file cannot be looked up") from error
        return False
    return True
