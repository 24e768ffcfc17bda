"""Runs the gateway's process: sockets while still root, then another user for good, signals, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import resource
import signal
from typing import TYPE_CHECKING

import uvloop

from gateway.control import Control
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.listeners import close_sockets, open_sockets
from gateway.submit import Submit
from gateway.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from gateway.settings.units import Endpoint
    from gateway.worker import Configuration

    #: What runs beside the worker; it is entered before the worker starts.
    Beside = Callable[[], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """Run nothing beside the worker."""
    yield


def run(configuration: Configuration, ready: Callable[[], None], beside: Beside = nothing) -> None:
    """Serve until SIGTERM or SIGINT. Raises GatewayError when it cannot start; then nothing was started."""
    sockets = open_sockets(configuration.settings.listeners)
    try:
        _allow_all_files()
        if os.geteuid() == 0:
            become(configuration.settings.gateway.user, configuration.settings.gateway.state)
        uvloop.run(_serve(configuration, sockets, ready, beside))
    finally:
        close_sockets(sockets)


def _allow_all_files() -> None:
    """Take as many open files as we may: the usual soft limit of 1024 is less than `limits.sessions`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def become(user: str, state: Path) -> None:
    """Give the state folder to a user and become it for good. Raises ConfigError."""
    if not user:
        raise ConfigError("gateway.user: set the user to become: the gateway does not run as root")
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"gateway.user: there is no user {user}") from None
    if account.pw_uid == 0:
        raise ConfigError("gateway.user: root is what this user must not be")
    state.mkdir(mode=0o750, parents=True, exist_ok=True)
    _give(state, account)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.umask(0o027)


def _give(state: Path, account: pwd.struct_passwd) -> None:
    """Hand a state folder over. What another user put there is a person's to sort out."""
    owner = state.stat().st_uid
    if owner == account.pw_uid:
        return
    if owner != 0 or any(state.iterdir()):
        raise ConfigError(
            Problem(f"gateway.state: {state} belongs to uid {owner}: run chown -R {account.pw_name} {state}")
        )
    os.chown(state, account.pw_uid, account.pw_gid)


async def _serve(
    configuration: Configuration,
    sockets: dict[Endpoint, list[socket.socket]],
    ready: Callable[[], None],
    beside: Beside,
) -> None:
    worker = Worker(configuration, sockets)
    control = Control(worker)
    submit = Submit(worker)
    ended = asyncio.Event()
    reasons: list[str] = []
    reloads: set[asyncio.Task[None]] = set()

    def end(name: str) -> None:
        reasons.append(name)
        ended.set()

    def reload() -> None:
        task = asyncio.get_running_loop().create_task(_reload(worker))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    async with beside():
        await worker.start()
        await control.start(configuration.settings.gateway.state)
        await submit.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number.name)
        loop.add_signal_handler(signal.SIGHUP, reload)
        ready()
        await ended.wait()
        await submit.stop()
        await control.stop()
        await worker.stop(reasons[0])


async def _reload(worker: Worker) -> None:
    """Reload at a signal; a configuration that is refused has become the event `config.rejected`."""
    with contextlib.suppress(GatewayError):
        await worker.reload("SIGHUP")
