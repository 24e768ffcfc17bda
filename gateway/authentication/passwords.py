"""The file of logins that `auth_file` reads and `mailward passwd` writes: a line for each.

`login:hash` or `login:hash:scram`, where `hash` is argon2's own form ($argon2id$...), with `!` before it
while the login is locked, and `scram` is `iterations,salt,stored key,server key` in base64.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.envelope import ScramKeys
from gateway.errors import ConfigError, Place, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What may stand in a login: no blank, no control character, no colon.
LOGIN = re.compile(r"[^\s:\x00-\x1f\x7f]{1,255}")
_LOCK = "!"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one login."""

    login: str
    hash: str
    locked: bool = False
    scram: ScramKeys | None = None


def parse(text: str, name: str) -> dict[str, Kept]:
    """Make login -> Kept of a file; for a ControlFile. Raises ConfigError with the line."""
    return {kept.login: kept for number, line in _lines(text) for kept in [_parse(line, Place(name, number))]}


def change(path: Path, login: str, make: Callable[[Kept | None], Kept | None]) -> None:
    """Put what `make` makes of a login in its place, or take it out; all other lines stay as they are.

    The file is replaced as a whole, with its owner and mode. Raises ConfigError, OSError.
    """
    text = path.read_text() if path.exists() else ""
    kept = make(parse(text, str(path)).get(login))
    lines = [line for line in text.splitlines() if line.partition(":")[0] != login]
    if kept is not None:
        lines.append(_written(kept))
    # Root may do this in a folder of the gateway's, who could put a link in the place of any name there.
    opened, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(opened, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
            if path.exists():
                status = path.stat()
                os.fchown(opened, status.st_uid, status.st_gid)
                os.fchmod(opened, status.st_mode & 0o777)
            file.flush()
            os.fsync(opened)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def locked(kept: Kept, *, lock: bool) -> Kept:
    """Give a login locked or unlocked."""
    return replace(kept, locked=lock)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _parse(line: str, place: Place) -> Kept:
    login, _, rest = line.partition(":")
    hashed, _, scram = rest.partition(":")
    if not LOGIN.fullmatch(login) or not hashed.lstrip(_LOCK).startswith("$argon2"):
        raise ConfigError(Problem("write `login:hash`, as `mailward passwd LOGIN` does", place))
    try:
        keys = _keys(scram) if scram else None
    except (ValueError, binascii.Error):
        raise ConfigError(
            Problem("the keys for SCRAM are not as `mailward passwd --scram` writes", place)
        ) from None
    return Kept(login, hashed.lstrip(_LOCK), hashed.startswith(_LOCK), keys)


def _keys(text: str) -> ScramKeys:
    iterations, salt, stored, server = text.split(",")
    return ScramKeys(_bytes(salt), int(iterations), _bytes(stored), _bytes(server))


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _written(kept: Kept) -> str:
    line = f"{kept.login}:{_LOCK if kept.locked else ''}{kept.hash}"
    if kept.scram is None:
        return line
    keys = kept.scram
    parts = (base64.b64encode(one).decode() for one in (keys.salt, keys.stored_key, keys.server_key))
    return f"{line}:{keys.iterations},{','.join(parts)}"
