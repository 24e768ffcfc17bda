"""Rights given up: becoming a user for good, and reading the configuration without any."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from typing import TYPE_CHECKING, Any

from gateway.accounts.ownership import refuse_changeable
from gateway.errors import AgentError, ConfigError, Place, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    #: Makes the plan of the configuration; it is called in a process without rights.
    Plan = Callable[[], dict[str, Any]]

#: The reader: nobody, in the group that conf.d belongs to.
_NOBODY = 65534


def read(conf: Path, plan: Plan) -> dict[str, Any]:
    """Have the configuration read by a process without rights. Raises ConfigError with what it said."""
    here, there = os.pipe()
    group = conf.stat().st_gid
    pid = os.fork()
    if not pid:
        # Not exec'd: a process that has given up root cannot be traced by others of its user.
        code = 1
        try:
            become(_NOBODY, group)
            data = json.dumps(plan()).encode()
            code = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, root hears of it as text
            data = (str(error) or repr(error)).encode("utf-8", "replace")
        finally:
            with os.fdopen(there, "wb") as out:
                out.write(data)
            os._exit(code)
    os.close(there)
    with os.fdopen(here, "rb") as said:
        data = said.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise ConfigError(data.decode("utf-8", "replace") or f"the reader of {conf} has ended")
    made: dict[str, Any] = json.loads(data)
    return made


def user_of(name: str, at: Sequence[Any] | None) -> pwd.struct_passwd:
    """Give the user that the gateway is to become; `at` is the place of the setting. Raises ConfigError."""
    try:
        account = pwd.getpwnam(name) if name else None
    except KeyError:
        wrong = f"there is no user {name}"
    else:
        if account and account.pw_uid != 0:
            return account
        wrong = (
            "root is what this user must not be"
            if account
            else "set the user to become: the gateway does not run as root"
        )
    raise ConfigError(Problem(f"gateway.user: {wrong}", Place(*at) if at else None))


def give_state(state: Path, account: pwd.struct_passwd, *, guarded: bool) -> None:
    """Hand the state folder over. What another user put there is a person's to sort out.

    Guarded: only where nobody but root could have the path lead elsewhere. Raises ConfigError.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if state.stat().st_uid == account.pw_uid:
                return
            _refuse_used(state, state.stat().st_uid, account, used=any(state.iterdir()))
        folder = _open_state(_past_links(state.absolute()) if guarded else state)
        try:
            used = bool(os.listdir(folder))  # noqa: PTH208 - by its number
            _refuse_used(state, os.fstat(folder).st_uid, account, used=used)
            os.fchown(folder, account.pw_uid, account.pw_gid)
        finally:
            os.close(folder)
    except (OSError, AgentError) as error:
        raise ConfigError(Problem(f"gateway.state: {error}")) from error


def _refuse_used(state: Path, owner: int, account: pwd.struct_passwd, *, used: bool) -> None:
    if owner != 0 or used:
        raise ConfigError(
            Problem(f"gateway.state: {state} belongs to uid {owner}: run chown -R {account.pw_name} {state}")
        )


def _past_links(path: Path) -> Path:
    """Give where a path leads, as far as there is something. Raises AgentError where others could turn it."""
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    return refuse_changeable(there) / path.relative_to(there)


def _open_state(state: Path) -> int:
    """Make the folder unless it is there, and open it; no link at its end is followed."""
    state.mkdir(mode=0o750, parents=True, exist_ok=True)
    return os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def become(uid: int, gid: int, name: str = "") -> None:
    """Become a user for good, with the groups that the system gives to this name. Raises OSError.

    It is seen afterwards: some numbers are taken to mean that nothing should change.
    """
    if name:
        os.initgroups(name, gid)
    else:
        os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if (os.getresuid(), os.getresgid()) != ((uid,) * 3, (gid,) * 3):
        raise PermissionError(f"to become uid {uid} and gid {gid} changed something else")
