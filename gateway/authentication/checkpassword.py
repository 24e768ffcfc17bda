"""Runs programs with the interface of checkpassword, which know whose password it is.

Login, password and a time come to the program over its fd 3, each with a NUL behind it. It ends with 0 when
the password is right (and has then run what stands behind it on its command line), 1 when it is wrong, 2
when it was called wrongly, 111 when it cannot tell now. Where there is an agent, it may run as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from gateway.decision import Accept, Defer
from gateway.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.agency import Agency
    from gateway.envelope import Credentials

#: What checkpassword reads, at most (its own documentation).
LONGEST = 512
#: A program that takes longer is killed, with all that it has started.
TIME = 30.0
#: Programs that run at one time for one plugin.
_AT_ONCE = 4
_GIVEN = 3
_WRONG = 1
_UNKNOWN = 111
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_DOUBT = Defer("4.7.0", "temporary authentication failure", reason="unavailable")


def pam_program(service: str) -> list[str]:
    """Give the program that asks PAM, for one of its services."""
    return [sys.executable, "-I", "-m", "gateway.authentication.pam", service]


class Checkpassword:
    """One program; with an agency it is run as root, and the agent knows by the plugin's name which one."""

    def __init__(self, plugin: str, program: Sequence[str], agency: Agency | None) -> None:
        self._plugin = plugin
        self._program = program
        self._agency = agency
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def check(self, credentials: Credentials) -> Accept | Defer | None:
        """Give Accept when the password is theirs, None when it is not, Defer when nobody can tell now."""
        if credentials.password is None:
            return None
        data = _written(credentials.login, credentials.password)
        if data is None:
            return None
        async with self._turn:
            return await self._told(data)

    async def _told(self, data: bytes) -> Accept | Defer | None:
        read, write = os.pipe()
        try:
            # A pipe holds more than this.
            os.write(write, data)
        finally:
            os.close(write)
        try:
            code = await self._run(read)
        except (AgentError, OSError):
            code = _UNKNOWN
        finally:
            os.close(read)
        return Accept() if code == 0 else None if code == _WRONG else _DOUBT

    async def _run(self, credentials: int) -> int:
        async with asyncio.timeout(TIME + 1):
            if self._agency is not None:
                return await self._agency.login(self._plugin, credentials)
            return await run(self._program, credentials)


async def run(program: Sequence[str], credentials: int, time: float = TIME) -> int:
    """Run a program as ourselves, with no open file but its fd 3; gives its exit code. Raises OSError."""
    pid = _spawn(program, credentials)
    ended = asyncio.Event()
    watch = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(watch, ended.set)
    try:
        async with asyncio.timeout(time):
            await ended.wait()
    except TimeoutError:
        return _UNKNOWN
    finally:
        loop.remove_reader(watch)
        os.close(watch)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        # One that has become another user may not be killed; it is buried when it ends.
        buried = loop.run_in_executor(None, os.waitpid, pid, 0)
    _, status = await buried
    return os.waitstatus_to_exitcode(status)


def _spawn(program: Sequence[str], credentials: int) -> int:
    actions = [
        *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(_GIVEN)),
        (os.POSIX_SPAWN_DUP2, credentials, _GIVEN),
        *((os.POSIX_SPAWN_CLOSE, number) for number in _inherited() if number > _GIVEN),
    ]
    return os.posix_spawn(program[0], [*program], _ENVIRONMENT, file_actions=actions, setsid=True)


def _inherited() -> list[int]:
    """Give the open files that a program would have, too: ways to other processes of the gateway."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers
        with contextlib.suppress(OSError):
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _written(login: str, password: str) -> bytes | None:
    """Write what a program reads; None for what it could not tell apart, and so for nobody's password."""
    parts = [one.encode("utf-8", "surrogateescape") for one in (login, password, "")]
    data = b"".join(one + b"\0" for one in parts)
    return None if any(b"\0" in one for one in parts) or len(data) > LONGEST or not login else data
