"""Whether a path is root's alone: nobody else can change the file, nor have the path lead elsewhere.

Each part is looked at before the next: what lies in a folder that others cannot change stays what it was.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What is not there, and in some of these cases never can be.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
#: Links that may be followed on one path, as in the kernel.
_LINKS = 40


class _Part(NamedTuple):
    """A folder, a link or the end of a path."""

    path: Path
    status: os.stat_result


def refuse_changeable(path: str | Path, account: int = 0) -> Path:
    """Give where a path leads, past links. Raises AgentError when others than root could change that.

    With an account (a uid), that one may change it, too.
    """
    done = Path("/")
    for part in _parts(str(path)):
        _refuse(part, account)
        done = part.path
    return done


def refuse_argument(word: str) -> None:
    """Refuse a word that names a file which others than root could change or, where there is none yet, make.

    It may be an option with the name at its end: `--config=/etc/x`, `-c/etc/x`. Raises AgentError, OSError.
    """
    names = [word, word.partition("=")[2]]
    if word.startswith("-"):
        names.append("".join(word.partition("/")[1:]))
    for name in names:
        _refuse_named(name)


def _refuse_named(name: str) -> None:
    ways = _parts(name)
    last = next(ways)
    try:
        for part in ways:
            _refuse(last)
            last = part
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        _refuse(last, sticky=False)
    else:
        _refuse(last)


def owned(path: str | Path) -> os.stat_result:
    """Give whose a folder is. Raises AgentError when others than root could put another in its place."""
    ways = _parts(str(path))
    folder = next(ways)
    for part in ways:
        # Of a sticky folder, too, the owner of what lies in it can put something else in its place.
        _refuse(folder, sticky=part.status.st_uid == 0)
        folder = part
    return folder.status


def _parts(path: str) -> Iterator[_Part]:
    """Give all that a path goes by, from the root on; links are followed, once they were looked at."""
    links = 0
    done, ahead = Path("/"), _names(path)
    yield _Part(done, done.lstat())
    while ahead:
        folder, done = done, done.parent if ahead[0] == ".." else done / ahead[0]
        ahead = ahead[1:]
        part = _Part(done, done.lstat())
        yield part
        if stat.S_ISLNK(part.status.st_mode):
            links += 1
            if links > _LINKS:
                raise AgentError(f"{path}: too many links")
            to = os.readlink(done)  # noqa: PTH115 - as it is written, for the walk
            done, ahead = (Path("/") if to.startswith("/") else folder), [*_names(to), *ahead]
            yield _Part(done, done.lstat())


def _names(path: str) -> list[str]:
    return [one for one in path.split("/") if one not in ("", ".")]


def _refuse(part: _Part, account: int = 0, *, sticky: bool = True) -> None:
    """Refuse what others than root and an account may change."""
    path, status = part
    folder = stat.S_ISDIR(status.st_mode)
    # What an account lets its own group write is its own to say, as it was under qmail.
    others = stat.S_IWOTH | (stat.S_IWGRP if status.st_uid == 0 else 0)
    # To write to a device or a socket is to use it, not to change it.
    used = any(kind(status.st_mode) for kind in (stat.S_ISLNK, stat.S_ISCHR, stat.S_ISSOCK))
    writable = status.st_mode & others and not used
    # Of a sticky folder nobody can rename what is root's, or the account's.
    if status.st_uid not in (0, account) or (
        writable and not (sticky and folder and status.st_mode & stat.S_ISVTX)
    ):
        whose = f"root or uid {account}" if account else "root"
        raise AgentError(f"{path}: it must belong to {whose}, and nobody else may write it")
