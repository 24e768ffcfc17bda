"""Finds the system user of a local part, with every check of qmail-getpw (qmail spec 6.3)."""

from __future__ import annotations

import errno
import os
import pwd
from typing import TYPE_CHECKING

from gateway.address import lower
from gateway.envelope import Account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The highest uid and gid: the number above it stands for "leave it as it is" (setresuid(2)).
HIGHEST_ID = 2**32 - 2
#: Names of this many bytes or more are never looked up.
LONGEST_NAME = 32
#: Errors of `stat` that may go away, as when a file server is down (qmail spec appendix A).
TEMPORARY = frozenset(
    {
        errno.EINTR,
        errno.ENOMEM,
        errno.EIO,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENFILE,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ECONNREFUSED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ESTALE,
    }
)


def find_user(
    local: str,
    separator: str,
    floor: int = 1,
    look_up: Callable[[str], pwd.struct_passwd] = pwd.getpwnam,
    owner_of: Callable[[str], int] = lambda home: os.stat(home).st_uid,  # noqa: PTH116 - a home of "" is none
) -> Account | None:
    """Give the user with the longest name that owns a local part; None when there is none.

    Never one whose uid is below the floor, nor one whose home belongs to somebody else. Raises OSError when
    a home cannot be looked at now.
    """
    for name, dash, ext in splits(local, separator):
        try:
            found = look_up(lower(name))
        except (KeyError, ValueError):
            continue
        if found.pw_uid >= floor and _owns(found, owner_of):
            return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, dash, ext, "passwd")
    return None


def splits(local: str, separator: str) -> Iterator[tuple[str, str, str]]:
    """Give (name, dash, extension) of every way to read a local part, the longest name first."""
    size = len(os.fsencode(local))
    if size < LONGEST_NAME:
        yield local, "", ""
    at = local.rfind(separator, 0, LONGEST_NAME + 1) if separator else -1
    while at >= 0:
        if len(os.fsencode(local[:at])) < LONGEST_NAME:
            yield local[:at], "-", local[at + len(separator) :]
        at = local.rfind(separator, 0, at)


def _owns(user: pwd.struct_passwd, owner_of: Callable[[str], int]) -> bool:
    try:
        return owner_of(user.pw_dir) == user.pw_uid
    except OSError as error:
        if error.errno in TEMPORARY:
            raise
        return False
