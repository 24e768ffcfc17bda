"""Whether a path is root's alone: nobody else can change the file, nor have the path lead elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gateway.errors import AgentError

#: Links that may be followed on one path, as in the kernel.
_LINKS = 40


def refuse_changeable(path: str | Path) -> Path:
    """Give where a path leads, past links. Raises AgentError when others than root could change that."""
    links = 0
    done, ahead = Path("/"), _parts(str(path))
    _refuse(done)
    while ahead:
        done = done.parent if ahead[0] == ".." else done / ahead[0]
        ahead = ahead[1:]
        if _refuse(done):
            links += 1
            if links > _LINKS:
                raise AgentError(f"{path}: too many links")
            to = os.readlink(done)  # noqa: PTH115 - as it is written, for the walk
            done, ahead = (Path("/") if to.startswith("/") else done.parent), [*_parts(to), *ahead]
    return done


def _parts(path: str) -> list[str]:
    return [one for one in path.split("/") if one not in ("", ".")]


def _refuse(path: Path) -> bool:
    """Refuse what others may change; gives whether it is a link."""
    status = path.lstat()
    link, folder = stat.S_ISLNK(status.st_mode), stat.S_ISDIR(status.st_mode)
    # Of a sticky folder nobody can rename what is root's.
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not link
    if status.st_uid != 0 or (writable and not (folder and status.st_mode & stat.S_ISVTX)):
        raise AgentError(f"{path}: it must belong to root, and nobody else may write it")
    return link
