"""Rights given up: becoming a user for good, and reading the configuration without any."""

from __future__ import annotations

import json
import os
import pwd
from typing import TYPE_CHECKING, Any

from gateway.errors import ConfigError, Place, Problem

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


def give_state(state: Path, account: pwd.struct_passwd) -> None:
    """Hand the state folder over. What another user put there is a person's to sort out."""
    state.mkdir(mode=0o750, parents=True, exist_ok=True)
    owner = state.stat().st_uid
    if owner == account.pw_uid:
        return
    if owner != 0 or any(state.iterdir()):
        raise ConfigError(
            Problem(f"gateway.state: {state} belongs to uid {owner}: run chown -R {account.pw_name} {state}")
        )
    os.chown(state, account.pw_uid, account.pw_gid)


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
