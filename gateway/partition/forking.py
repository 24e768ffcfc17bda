"""The processes that the agent starts; all but the supervisor by exec, with no open file but their own.

The child of an account becomes the account for good. A program that knows logins stays root, for it reads
what only root may: it is named by the configuration, and root alone can change it.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from gateway import signals
from gateway.errors import GatewayError
from gateway.partition.privilege import become

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Mapping, Sequence

    from gateway.accounts.book import Listed

#: The number of what a process gets from us: a child its way to the agent, a program login and password.
GIVEN = 3
#: A login that takes longer is ended, by the kernel.
_LOGIN_TIME = 30
#: With an arena for each thread, libc would take 64 MiB of an account's memory for it, to use a few of them.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}


def start_child(account: Listed, way: int, words: str, limits: Mapping[str, int]) -> int:
    """Become an account within its limits, and run what delivers for it; gives the process."""

    def begin() -> None:
        _hold(resource.RLIMIT_CORE, 0)
        _hold(resource.RLIMIT_AS, limits["memory"])
        _hold(resource.RLIMIT_NPROC, limits["processes"])
        _hold(resource.RLIMIT_NOFILE, limits["files"])
        become(account.uid, account.gid, account.user if account.system else "")
        os.umask(0o077)

    module = "gateway.partition.delivering"
    return _start([sys.executable, "-I", "-m", module, str(GIVEN), words], way, begin)


def _hold(kind: int, most: int) -> None:
    """Set a limit that what we become cannot raise; never a higher one than we have ourselves."""
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def start_login(program: Sequence[str], credentials: int) -> int:
    """Run a program that knows logins, as root; gives the process."""

    def begin() -> None:
        signal.alarm(_LOGIN_TIME)

    return _start(program, credentials, begin)


def _start(program: Sequence[str], given: int, begin: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            for one in (*signals.OURS, signal.SIGPIPE):
                signal.signal(one, signal.SIG_DFL)
            os.chdir("/")
            # First: what is open may be more than the limits let be counted.
            _keep_only(given)
            begin()
            os.execve(program[0], [*program], _ENVIRONMENT)  # noqa: S606 - no shell is wanted
        finally:
            os._exit(111)
    return pid


def _keep_only(given: int) -> None:
    """Close all but one file: not a listener's socket, not a terminal, not a request of another account."""
    null = os.open(os.devnull, os.O_RDWR)
    # Out of the way of the numbers that they are to have.
    kept, null = (fcntl.fcntl(one, fcntl.F_DUPFD, GIVEN + 1) for one in (given, null))
    for number in range(GIVEN):
        os.dup2(null, number)
    os.dup2(kept, GIVEN)
    os.closerange(GIVEN + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def serve_as(account: pwd.struct_passwd, serve: Callable[[], None]) -> None:
    """Become the gateway's user and serve; does not return."""
    code = 1
    try:
        for one in signals.OURS:
            signal.signal(one, signal.SIG_DFL)
        become(account.pw_uid, account.pw_gid, account.pw_name)
        os.umask(0o027)
        serve()
        code = 0
    except GatewayError as error:
        sys.stderr.write(f"{error}\n")
    except BaseException:  # noqa: BLE001 - nobody else is there to show it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
