"""The supervisor: workers, signals, and the end. What needs rights, the agent does for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from gateway import events, signals
from gateway.configuration import Configuration, make_state
from gateway.console import Console
from gateway.errors import GatewayError
from gateway.journal import Journal
from gateway.listeners import close_sockets, share_out
from gateway.log import Log
from gateway.partition.notify import notify
from gateway.submit import open_socket
from gateway.workers.fanout import Fanout
from gateway.workers.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from gateway.agency import Agency
    from gateway.listeners import Sockets
    from gateway.settings import Listener

    #: What runs beside the workers; it is entered before they start.
    Beside = Callable[[], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """Run nothing beside the workers."""
    yield


def run(
    configuration: Configuration,
    ready: Callable[[], None],
    beside: Beside = nothing,
    shares: Sequence[Sockets] | None = None,
    agency: Agency | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises GatewayError when it cannot start; then nothing was started.

    An agent has opened the sockets: `shares` are those, a share for each worker.
    """
    shares = shares or share_out(configuration.settings.listeners, configuration.workers)
    try:
        _allow_all_files()
        uvloop.run(_serve(configuration, shares, ready, beside, agency))
    finally:
        for share in shares:
            close_sockets(share, paths=agency is None)


def _allow_all_files() -> None:
    """Take as many open files as we may: the usual soft limit of 1024 is less than `limits.sessions`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def bind(listeners: Sequence[Listener], workers: int) -> list[Sockets]:
    """Open the sockets of listeners that a reload brings, as ourselves. Raises ListenError."""
    return share_out(listeners, workers)


async def _serve(
    configuration: Configuration,
    shares: Sequence[Sockets],
    ready: Callable[[], None],
    beside: Beside,
    agency: Agency | None,
) -> None:
    """Serve by these sockets until a signal. Raises GatewayError when it cannot, or cannot any more."""
    async with contextlib.AsyncExitStack() as stack:
        supervisor = Supervisor(configuration, stack, agency)
        supervisor.listen_to_signals()
        await stack.enter_async_context(beside())
        try:
            await supervisor.start(shares)
        except GatewayError:
            # A signal to the whole group has ended workers that could not hear it yet.
            if supervisor.ending:
                return
            raise
        if not supervisor.ending:
            await supervisor.tell("READY")
            ready()
        await supervisor.serve()


class Supervisor:
    """The process that the workers answer to: it holds what they share, and does no mail itself."""

    def __init__(
        self, configuration: Configuration, stack: contextlib.AsyncExitStack, agency: Agency | None
    ) -> None:
        self._configuration = configuration
        self._stack = stack
        self._agency = agency
        self._began = time.time()
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._started = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()
        self._journal: Journal
        self._log: Log
        self._pool: Pool

    @property
    def ending(self) -> bool:
        """A signal has said to end."""
        return self._reason.done()

    async def start(self, shares: Sequence[Sockets]) -> None:
        """Start the workers and the sockets of people and programs. Raises GatewayError."""
        settings = self._configuration.settings
        make_state(settings.gateway.state)
        self._open_journal(len(shares))
        submit = open_socket(settings.gateway.state, settings.gateway.hostname)
        self._stack.callback(submit.close)
        self._stack.callback(Path(submit.getsockname()).unlink, missing_ok=True)
        opens = self._agency.bind if self._agency else bind
        self._pool = Pool(
            self._configuration, shares, submit, self._journal.emit, self._records, opens, self._agency
        )
        await self._pool.start()
        fanout = Fanout(self._pool, self._journal.folder, self._reload)
        console = Console(fanout.find)
        await console.start(settings.gateway.state)
        self._stack.push_async_callback(console.stop)
        self._tell_loaded("")
        listeners = tuple(f"{one.name} {one.protocol} {one.address}" for one in settings.listeners)
        event = events.GatewayStarted(version=version("mailward"), listeners=listeners, pid=os.getpid())
        self._journal.emit(event)
        self._started.set()

    def listen_to_signals(self) -> None:
        """End at SIGTERM and SIGINT, reload at SIGHUP; what comes before we serve waits until then."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        signals.hear()

    async def serve(self) -> None:
        """Serve until a signal ends it, gently. Raises GatewayError when no worker can be had any more."""
        ends: list[asyncio.Future[Any]] = [self._reason, self._pool.failed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        reason = self._reason.result() if self.ending else "no worker can be started"
        await self.tell("STOPPING")
        await self._pool.stop(reason)
        seconds = round(time.time() - self._began, 3)
        self._journal.emit(events.GatewayStopped(reason=reason, seconds=seconds))
        if not self.ending:
            raise self._pool.failed.result()

    async def tell(self, word: str) -> None:
        """Tell systemd, where it has started us."""
        if self._agency and "NOTIFY_SOCKET" in os.environ:
            await self._agency.notify(word)
        else:
            notify(word)

    def _open_journal(self, workers: int) -> None:
        settings = self._configuration.settings
        self._log = Log(settings.journal.outputs, lambda: self._configuration.settings.queue.concurrency)
        self._journal = Journal(
            settings.gateway.state / "journal",
            settings.gateway.hostname,
            stream="supervisor",
            streams=workers + 1,
            keep=settings.journal.keep,
            max_size=settings.journal.max_size,
            outputs=self._log.outputs,
        )
        self._journal.open()
        self._stack.callback(self._journal.close)
        self._log.start(self._journal.emit)
        self._stack.callback(self._log.close)

    def _records(self, lines: list[str]) -> None:
        """Write a worker's events to the outputs."""
        records = [json.loads(line) for line in lines]
        for output in self._log.outputs:
            dropped = output.write(records)
            if dropped:
                event = events.EventsDropped(reason="output_slow", output=output.name, count=dropped)
                self._journal.emit(event)

    def _end(self, name: str) -> None:
        if not self.ending:
            self._reason.set_result(name)

    def _hang_up(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_at_signal())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_at_signal(self) -> None:
        """Reload; say at the terminal that a configuration is refused, unless events are read there."""
        await self._started.wait()
        try:
            await self._reload("SIGHUP")
        except GatewayError as error:
            if any(isinstance(one.to, str) for one in self._configuration.settings.journal.outputs):
                return
            with contextlib.suppress(OSError):  # the terminal may have hung up
                sys.stderr.write(f"{error}\nnothing was reloaded: the old configuration runs on\n")
                sys.stderr.flush()

    async def _reload(self, actor: str) -> dict[str, list[str]]:
        """Use a new reading of conf.d, all of it or none. Raises GatewayError; then the old one runs on."""
        old = self._configuration
        await self.tell("RELOADING")
        try:
            new = Configuration.load(old.folder, old.tree.base)
            changes = await self._pool.reload(new)
        except GatewayError as error:
            problems = tuple(str(error).splitlines())
            event = events.ConfigRejected(folder=str(old.folder), problems=problems, actor=actor)
            self._journal.emit(event)
            raise
        finally:
            await self.tell("READY")
        self._configuration = new
        self._tell_loaded(actor)
        return changes

    def _tell_loaded(self, actor: str) -> None:
        event = events.ConfigLoaded(
            folder=str(self._configuration.folder),
            plugins=self._pool.plugins,
            generation=self._pool.generation,
            actor=actor,
        )
        self._journal.emit(event)
