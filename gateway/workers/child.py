"""A worker's own process: does what the supervisor says over the link, and ends when that is gone.

It is started with the numbers of three open files: the link, the way by which sockets come, and where the
stacks of its threads go when the supervisor asks what it is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import select
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from gateway import signals
from gateway.agency import Agency
from gateway.configuration import Configuration
from gateway.endpoint import Endpoint
from gateway.journal.line import dump
from gateway.link import Link
from gateway.plugin import Services
from gateway.services import Clock, Dns
from gateway.submit import Submit
from gateway.worker import GRACE, Member, Worker
from gateway.workers.calls import Calls, changes
from gateway.workers.handover import AGENT, SUBMIT, take
from gateway.workers.process import STACKS
from gateway.workers.sharing import SharedCounters, SharedSlots, SoleCounters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.journal.writer import Record
    from gateway.link import Call
    from gateway.listeners import Sockets

#: Seconds between two signs of life.
BEAT = 1.0
#: Seconds that a worker whose supervisor is gone has for its gentle end. It is also the signal by which the
#: kernel tells it: the handler is libc's `alarm`, which takes the number of the signal for that of seconds.
_LAST = int(2 * GRACE)
_PR_SET_PDEATHSIG = 1
#: Events that wait for the supervisor to write them out; beyond it outputs miss some, counted.
_BACKLOG = 10_000


def main() -> None:
    """Run until told to stop."""
    link, way, stacks = map(int, sys.argv[1:4])
    faulthandler.register(STACKS, stacks, all_threads=True)
    side = socket.socket(fileno=way)
    _end_with_the_supervisor(side)
    uvloop.run(_serve(socket.socket(fileno=link), side))


def _end_with_the_supervisor(way: socket.socket) -> None:
    """Have the kernel end us some time after the supervisor, whatever we are doing.

    A handler of Python's would wait for the interpreter, which a plugin's call into C may hold for ever.
    """
    libc = ctypes.CDLL(None)
    libc.signal(_LAST, libc.alarm)
    if libc.prctl(_PR_SET_PDEATHSIG, _LAST):
        raise ValueError(f"there is no signal {_LAST}")
    gone = select.poll()
    gone.register(way, 0)  # a hang-up is always told
    if gone.poll(0):
        sys.exit("the supervisor has ended")


async def _serve(one: socket.socket, way: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in signals.OURS:
        # These reach the whole group of processes. What they mean the supervisor says; ignoring them
        # would be inherited by programs.
        loop.add_signal_handler(number, lambda: None)
    child = Child(way)
    child.link = await Link.open(one, child.calls)
    beating = loop.create_task(_beat(child.link))
    waits = [loop.create_task(event.wait()) for event in (child.link.lost, child.ended)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(Exception):
        await child.stop("the supervisor has ended")
    beating.cancel()
    child.link.close()


async def _beat(link: Link) -> None:
    while True:
        link.tell("beat")
        await asyncio.sleep(BEAT)


class Child:
    """The worker and what the supervisor may ask of it."""

    def __init__(self, way: socket.socket) -> None:
        self.link: Link
        self.ended = asyncio.Event()
        self._way = way
        #: What was handed over and is not served yet.
        self._taken: dict[str, list[socket.socket]] = {}
        self._worker: Worker | None = None
        self._submit: Submit | None = None
        self._output: LinkOutput | None = None
        self.calls: dict[str, Call] = {
            "take": self._take,
            "start": self._start,
            "prepare": self._prepare,
            "abandon": self._abandon,
            "switch": self._switch,
            "serve": self._serve,
            "stop": self.stop,
            "ask": self._ask,
        }

    @property
    def worker(self) -> Worker:
        """The worker, once it was started."""
        assert self._worker  # noqa: S101 - `start` comes first
        return self._worker

    def _take(self) -> None:
        name, sockets = take(self._way)
        self._taken[name] = sockets

    async def _start(self, number: int, count: int, configuration: dict[str, Any]) -> dict[str, Any]:
        """Start the worker; gives what the supervisor must know of it. Raises GatewayError."""
        read = _read(configuration)
        clock = Clock()
        self._output = LinkOutput(self.link)
        member = Member(
            number,
            count,
            {one: SharedSlots(self.link, one) for one in ("local", "remote")} if count > 1 else None,
            [self._output] if read.settings.journal.outputs else [],
        )
        agency = Agency(self._taken.pop(AGENT)[0]) if AGENT in self._taken else None
        counters = SharedCounters(self.link) if count > 1 else SoleCounters(self.link)
        services = Services(clock, Dns(), counters, agency)
        (listening,) = self._taken.pop(SUBMIT)
        worker = Worker(read, self._sockets(), services, member)
        await worker.start()
        self._worker, self._submit = worker, Submit(worker)
        await self._submit.start(listening)
        return {"shared": worker.queue.shared, **self._plugins()}

    async def _prepare(self, configuration: dict[str, Any]) -> None:
        await self.worker.prepare(_read(configuration))

    async def _abandon(self) -> None:
        await self.worker.abandon()

    async def _switch(self) -> dict[str, Any]:
        before = self.worker.generation
        await self.worker.switch(self._sockets())
        return {"changes": changes(before, self.worker.generation), **self._plugins()}

    async def _serve(self) -> None:
        for endpoint, some in self._sockets().items():
            await self.worker.serve(endpoint, some)

    def _sockets(self) -> Sockets:
        """Give what was handed over since the last time."""
        taken, self._taken = self._taken, {}
        return {Endpoint.parse(name): some for name, some in taken.items()}

    async def stop(self, reason: str) -> None:
        """End gently."""
        worker, self._worker = self._worker, None
        if worker and self._submit:
            await self._submit.stop()
            await worker.stop(reason)
        if self._output:
            await self._output.written()
        self.ended.set()

    def _ask(self, name: str, arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        return Calls(self.worker).find(name)(**arguments)

    def _plugins(self) -> dict[str, Any]:
        """Say which plugins run, and where the code of each stands."""
        plugins = self.worker.generation.plugins
        return {"plugins": {stem: str(one.found.path) for stem, one in plugins.items()}}


class LinkOutput:
    """Sends events to the supervisor, who writes them out for all workers."""

    name = "supervisor"

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = self._dropped = 0

    def write(self, records: Sequence[Record]) -> int:
        """Take records, from the journal's thread. Gives how many were dropped before there was room."""
        if self._waiting and self._waiting + len(records) > _BACKLOG:
            self._dropped += len(records)
            return 0
        self._waiting += len(records)
        lines = [dump(record).decode() for record in records]
        self._loop.call_soon_threadsafe(self._send, lines)
        dropped, self._dropped = self._dropped, 0
        return dropped

    def close(self) -> None:
        """Take no more; `written` waits for what was taken."""

    async def written(self) -> None:
        """Wait until the supervisor has all."""
        await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _send(self, lines: list[str]) -> None:
        task = self._loop.create_task(self._sent(lines))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sent(self, lines: list[str]) -> None:
        try:
            await self._link.call("records", lines=lines)
        finally:
            self._waiting -= len(lines)


def _read(configuration: dict[str, Any]) -> Configuration:
    folder, base = Path(configuration["folder"]), Path(configuration["base"])
    return Configuration.parse(folder, configuration["texts"], base)
