"""The worker processes of a gateway: started, kept alive, watched, reloaded all or none, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.counters import Counters
from gateway.errors import GatewayError
from gateway.listeners import close_sockets
from gateway.queue.slots import slots_of
from gateway.services import Clock
from gateway.workers.handover import AGENT, SUBMIT
from gateway.workers.process import Process
from gateway.workers.seat import Seat
from gateway.workers.sharing import Ledger
from gateway.workers.watchdog import LONG_PATIENCE, LOOK, PATIENCE, Suspicion, culprit

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from gateway.agency import Agency
    from gateway.configuration import Configuration
    from gateway.link import Call
    from gateway.listeners import Sockets
    from gateway.settings import Listener

    #: Opens sockets for so many workers. Raises ListenError.
    Bind = Callable[[Sequence[Listener], int], Awaitable[list[Sockets]]]

#: The longest that a worker may take to start.
_START = 120.0
#: A worker that has not ended so many seconds after it was told to is killed.
_STOP = 45.0
#: A worker that dies again and again is started after 0, 1, 2, 4 ... seconds, at most this many.
_PAUSE = 30.0
#: One that has lived for so many seconds dies for the first time.
_SOUND = 60.0


class Pool:
    """All workers. `failed` is set when none is left and none can be started."""

    def __init__(
        self,
        configuration: Configuration,
        shares: Sequence[Sockets],
        submit: socket.socket,
        emit: Callable[[events.Event], None],
        records: Call,
        bind: Bind,
        agency: Agency | None = None,
    ) -> None:
        self._agency = agency
        self.configuration = configuration
        self.generation = 1
        self.seats = [Seat(number, share) for number, share in enumerate(shares)]
        #: All workers see one queue.
        self.shared = False
        self.failed: asyncio.Future[GatewayError] = asyncio.get_running_loop().create_future()
        self._submit = submit
        self._emit = emit
        self._records = records
        self._bind = bind
        self._counters = Counters(Clock())
        self._slots = slots_of(lambda: self.configuration.settings.queue)
        #: Held while a worker starts, and while all of them change their configuration.
        self._changing = asyncio.Lock()
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def plugins(self) -> tuple[str, ...]:
        """Stems of the plugins that run."""
        return tuple(self.seats[0].plugins)

    def serving(self) -> list[tuple[Seat, Process]]:
        """Give the workers that can be asked now."""
        return [(seat, seat.process) for seat in self.seats if seat.ready and seat.process]

    async def start(self) -> None:
        """Start all workers, or none. Raises GatewayError."""
        started = await asyncio.gather(*map(self._launch, self.seats), return_exceptions=True)
        for error in started:
            if isinstance(error, BaseException):
                await self.stop("not started")
                raise error
        for seat in self.seats:
            self._spawn(self._keep(seat))
        self._spawn(self._watch())

    async def stop(self, reason: str) -> None:
        """Let all workers end gently; one that does not is killed."""
        self._stopping = True
        self._close([seat.sockets for seat in self.seats])
        await asyncio.gather(*(self._stop(seat, reason) for seat in self.seats))
        for task in self._tasks:
            task.cancel()

    async def reload(self, new: Configuration) -> dict[str, list[str]]:
        """Change the configuration of all workers, or of none; gives what changed. Raises GatewayError."""
        async with self._changing:
            new.follows(self.configuration)
            known = self.seats[0].sockets
            added = [one for one in new.settings.listeners if one.address not in known]
            opened = await self._bind(added, len(self.seats))
            try:
                await self._all("prepare", configuration=_handed(new))
                if self._agency:
                    await self._agency.adopt()
            except GatewayError:
                await self._all("abandon", quiet=True)
                await self._drop(opened)
                raise
            self.configuration, self.generation = new, self.generation + 1
            return await self._switch(opened)

    async def _switch(self, opened: Sequence[Sockets]) -> dict[str, list[str]]:
        """Have all workers use what they have prepared; one that cannot is started anew with it."""
        wanted = {one.address for one in self.configuration.settings.listeners}
        dropped = [seat.sockets.keys() - wanted for seat in self.seats]
        changes: dict[str, list[str]] = {}
        for seat, share in zip(self.seats, opened, strict=True):
            seat.sockets |= share
        for seat, process in self.serving():
            try:
                await process.hand(opened[seat.number])
                said = await process.link.call("switch")
            except GatewayError:
                process.kill()
            else:
                seat.plugins, changes = said["plugins"], said["changes"]
        await self._drop(
            [
                {one: seat.sockets.pop(one) for one in gone}
                for seat, gone in zip(self.seats, dropped, strict=True)
            ]
        )
        return changes

    def _close(self, shares: Sequence[Sockets]) -> None:
        """Close sockets; the agent removes the paths of those that it has bound."""
        for share in shares:
            close_sockets(share, paths=self._agency is None)

    async def _drop(self, shares: Sequence[Sockets]) -> None:
        """Close the sockets of listeners that are no more."""
        self._close(shares)
        if self._agency:
            await self._agency.unbind()

    async def _all(self, name: str, *, quiet: bool = False, **arguments: Any) -> None:
        """Call all workers; waits for all of them. Raises the first GatewayError unless `quiet`."""
        asked = self.serving()
        for seat, _ in asked:
            seat.patience = LONG_PATIENCE
        calls = (process.link.call(name, **arguments) for _, process in asked)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for seat, _ in asked:
            seat.patience = PATIENCE
        for answer in answers:
            if isinstance(answer, BaseException) and not quiet:
                raise answer

    async def _launch(self, seat: Seat) -> None:
        """Start a worker's process; it serves when this returns. Raises GatewayError."""
        ledger = Ledger(self._counters, self._slots)
        try:
            process = seat.process = await Process.spawn({**ledger.calls, "records": self._records})
        except OSError as error:
            raise GatewayError(f"worker {seat.number} cannot be started: {error.strerror}") from error
        self._spawn(self._bury(process, ledger))
        if self._stopping:
            process.kill()
        try:
            async with asyncio.timeout(_START):
                said = await self._begin(seat, process)
        except TimeoutError as error:
            process.kill()
            raise GatewayError(f"worker {seat.number} did not start within {_START:g} s") from error
        except GatewayError:
            process.kill()
            raise
        process.beat()
        self.shared, seat.plugins, seat.killed, seat.ready = said["shared"], said["plugins"], None, True
        self._emit(events.WorkerStarted(worker=seat.name, pid=process.pid))

    async def _begin(self, seat: Seat, process: Process) -> dict[str, Any]:
        await process.hand(seat.sockets)
        await process.hand_one(SUBMIT, [self._submit])
        if self._agency is not None:
            await process.hand_one(AGENT, [self._agency.door])
        said: dict[str, Any] = await process.link.call(
            "start", number=seat.number, count=len(self.seats), configuration=_handed(self.configuration)
        )
        return said

    async def _bury(self, process: Process, ledger: Ledger) -> None:
        """Wait for a process's end, and give back what it held of that all share."""
        await process.ended()
        await ledger.release()

    async def _keep(self, seat: Seat) -> None:
        """Start a worker again whenever it has died."""
        while seat.process:
            status = await seat.process.ended()
            seat.ready = False
            if self._stopping:
                return
            lived = time.monotonic() - seat.process.born
            seat.deaths = 1 if lived > _SOUND else seat.deaths + 1
            died = events.WorkerDied(worker=seat.name, pid=seat.process.pid, status=status, reason="died")
            self._emit(seat.killed or died)
            await self._again(seat)

    async def _again(self, seat: Seat) -> None:
        """Start one worker, however often it takes; meanwhile another one takes what comes for it."""
        while not self._stopping:
            if seat.deaths > 1:
                await asyncio.sleep(min(2.0 ** (seat.deaths - 2), _PAUSE))
            try:
                async with self._changing:
                    await self._launch(seat)
            except GatewayError as error:
                if self._stopping:
                    return
                seat.deaths += 1
                self._emit(events.WorkerDied(worker=seat.name, reason="refused", error=str(error)))
                if not self.serving() and not self.failed.done():
                    self.failed.set_result(error)
                await self._lend(seat)
            else:
                return

    async def _lend(self, seat: Seat) -> None:
        """Let another worker take the connections that wait for one that cannot be started."""
        for _, process in self.serving()[:1]:
            with contextlib.suppress(GatewayError):
                await process.hand(seat.sockets)
                await process.link.call("serve")

    async def _stop(self, seat: Seat, reason: str) -> None:
        process = seat.process
        if process is None:
            return
        seat.patience = _STOP
        ended = asyncio.ensure_future(process.ended())
        if seat.ready:
            with contextlib.suppress(GatewayError, TimeoutError):
                await asyncio.wait_for(process.link.call("stop", reason=reason), _STOP)
        else:
            process.kill()
        done, _ = await asyncio.wait([ended], timeout=_STOP)
        if not done:
            process.kill()
            await ended

    async def _watch(self) -> None:
        """Kill workers that give no sign of life; `_keep` starts them again."""
        suspicion = Suspicion(time.monotonic())
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            suspicion.look(now)
            for seat, process in self.serving():
                if not seat.killed and suspicion.frozen(process.beaten, now, seat.patience):
                    await self._unfreeze(seat, process)

    async def _unfreeze(self, seat: Seat, process: Process) -> None:
        """Find out what a worker is doing, and end it unless it has come to life meanwhile."""
        if process.stopped():
            return
        before = process.beaten
        stacks = await process.stacks()
        await asyncio.sleep(LOOK)  # one that was only kept from running does so now
        if process.beaten == before:
            seat.killed = events.WorkerDied(
                worker=seat.name,
                pid=process.pid,
                status=-9,
                reason="frozen",
                plugin=culprit(stacks, seat.plugins),
                traceback=stacks,
            )
            process.kill()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _handed(configuration: Configuration) -> dict[str, Any]:
    """Write a configuration so that another process can have the same."""
    tree = configuration.tree
    return {"folder": str(configuration.folder), "base": str(tree.base), "texts": tree.texts}
