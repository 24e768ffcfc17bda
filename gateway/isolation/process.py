"""`isolation: process`: a plugin in a process of its own. It may crash, leak or spin: mail goes on.

The process is started by `startup` and speaks over a link. A call that is not over at its deadline is
cancelled there; when that does not help at once, the process is killed. One that has ended is started again,
at once and then after ever longer pauses; until it is ready its stages hear `on_error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

from gateway.counters import Counters
from gateway.errors import GatewayError, IsolationError
from gateway.events import PluginExited
from gateway.hookspecs import SPECS, Stages
from gateway.isolation.values import Edits, pack, unpack
from gateway.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from gateway.plugin import Plugin

#: A process may take so many seconds to be ready, and for its `shutdown`.
START, STOP = 60.0, 5.0
#: A call that was cancelled has so many seconds to end before its process is killed.
MERCY = 0.25
#: Pauses before the next start, in seconds; a process that lived for LONG begins again with the first.
PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
LONG = 60.0
#: The longest line that a process may send: the answer to one call, with a body that it has made.
LINE = 64 * 1024 * 1024
#: What a plugin may have the gateway do from there.
_FAR = {
    "chain": frozenset({"ask", "ask_plugin", "transform"}),
    "counters": frozenset(name for name in vars(Counters) if not name.startswith("_")),
}


class Raised(Exception):
    """What a plugin raised in its process; the traceback from there is its note."""

    def __init__(self, text: str, traceback: str) -> None:
        super().__init__(text)
        self.add_note(traceback)

    def __repr__(self) -> str:
        return str(self)


class Process:
    """The process of one plugin, as the gateway sees it."""

    def __init__(self, plugin: Plugin[Any], opening: Mapping[str, Any], deadline: float) -> None:
        self._plugin = plugin
        self._opening = opening
        self._deadline = deadline
        self._folder = plugin.site.state / plugin.stem
        self._numbers = count(1)
        self._link: Link | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._begun = 0.0
        self._failures = 0
        self._tending: asyncio.Task[None] | None = None
        #: Why no call is let through now, "" when they are.
        self._closed = "its process is not started"

    @property
    def pid(self) -> int:
        """The process's number, 0 when none runs."""
        return self._child.pid if self._child else 0

    def caller(self, stage: str, *, dry_run: bool) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Give what asks the plugin at a stage, in place of its method."""

        async def in_process(*args: Any) -> Any:
            said = await self._ask(stage, args)
            if "error" in said:
                raise Raised(said["error"], said["traceback"])
            edits = Edits(self._plugin.stem, said["edits"])
            edits.apply(args, notes_only=dry_run, folder=self._folder)
            return args[said["same"]] if "same" in said else unpack(said["value"])

        return in_process

    async def start(self) -> None:
        """Start the process and run `startup` there. Raises what that raised, IsolationError."""
        await self._open()
        said = await self._life("startup", START)
        if said:
            await self.stop()
            raise said
        self._tending = asyncio.get_running_loop().create_task(self._tend())

    async def stop(self) -> None:
        """Run `shutdown` there and end the process."""
        if self._tending is not None:
            self._tending.cancel()
        if self._link is None:
            return
        said = await self._life("shutdown", STOP)
        self._closed = "its process is stopped"
        await self._end()
        if said:
            raise said

    async def _ask(self, stage: str, args: Sequence[Any]) -> dict[str, Any]:
        if self._tending is None and self._link is None:
            # A command asks a chain that was never started up.
            await self._open()
        if self._closed or self._link is None:
            raise IsolationError(self._closed)
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        began = loop.time()
        packed = [pack(one, self._plugin.stem) for one in args]
        call = loop.create_task(self._link.call("ask", number=number, stage=stage, args=packed))
        try:
            answer: dict[str, Any] = await asyncio.shield(call)
        except asyncio.CancelledError:
            self._give_up(call, number, self._deadline - (loop.time() - began))
            raise
        except GatewayError as error:
            raise IsolationError(f"its process has ended: {error}") from None
        return answer

    def _give_up(self, call: asyncio.Task[Any], number: int, left: float) -> None:
        """Cancel a call; who asked may have left before its time was over, and others use the process."""
        if self._link is None or call.done():
            call.cancel()
            return
        self._link.tell("leave", number=number)
        child = self._child
        timer = asyncio.get_running_loop().call_later(max(left, 0) + MERCY, self._kill, child)
        if left <= MERCY:
            self._closed = "a call did not end in time"
        call.add_done_callback(lambda done: self._ended_late(done, timer))

    def _ended_late(self, call: asyncio.Task[Any], timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        if not call.cancelled() and call.exception() is None and self._link and not self._link.lost.is_set():
            self._closed = ""

    async def _open(self) -> None:
        """Start a process and load the plugin there. Raises IsolationError."""
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-m", "gateway.loader.child", str(theirs.fileno())]
        try:
            # A session of its own: Ctrl-C at a terminal is for the gateway, which ends it.
            # Not in a thread: it would be killed with the thread that has started it.
            self._child = subprocess.Popen(  # noqa: ASYNC220
                words, pass_fds=[theirs.fileno()], start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise IsolationError(f"its process cannot be started: {error}") from error
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        self._link = await _Bounded.open(ours, {"call": self._called, "emit": self._emit, "log": self._log})
        self._begun = loop.time()
        try:
            async with asyncio.timeout(START):
                await self._link.call("open", **self._opening)
        except (TimeoutError, GatewayError) as error:
            await self._end()
            raise IsolationError(f"its process did not get ready: {error}") from error
        self._closed = ""

    async def _life(self, name: str, longest: float) -> Exception | None:
        """Run `startup` or `shutdown`; gives what went wrong."""
        if self._link is None:
            return None
        try:
            async with asyncio.timeout(longest):
                said = await self._link.call("ask", number=0, stage=name, args=[])
        except (TimeoutError, GatewayError) as error:
            return IsolationError(f"{name} in its process: {error or 'no answer'}")
        return Raised(said["error"], said["traceback"]) if "error" in said else None

    async def _tend(self) -> None:
        """Start the process again whenever it has ended."""
        loop = asyncio.get_running_loop()
        while True:
            if self._link is not None:
                await self._link.lost.wait()
                self._closed = "its process has ended and is being started again"
            why = await self._end()
            lived = loop.time() - self._begun
            self._failures = 0 if lived >= LONG else self._failures
            pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
            self._failures += 1
            self._plugin.emit(
                PluginExited(plugin=self._plugin.stem, error=why, seconds=round(lived, 3), pause=pause)
            )
            await asyncio.sleep(pause)
            with contextlib.suppress(GatewayError):
                await self._open()
                if await self._life("startup", START):
                    self._kill(self._child)

    async def _end(self) -> str:
        """Take leave of the process; gives how it ended."""
        child, self._child = self._child, None
        if self._link is not None:
            self._link.close()
            self._link = None
        if child is None:
            return "it was not running"
        try:
            code = await asyncio.to_thread(child.wait, MERCY)
        except subprocess.TimeoutExpired:
            child.kill()
            code = await asyncio.to_thread(child.wait)
        finally:
            if child.poll() is None:
                child.kill()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def _kill(self, child: subprocess.Popen[bytes] | None) -> None:
        if child is not None and child is self._child:
            self._closed = "a call did not end in time"
            child.kill()

    async def _called(self, of: str, name: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Do for the plugin what only the gateway can: ask the chain, count."""
        given = [unpack(one) for one in args]
        if of == "chain":
            # The stage, which crosses by its name, stands first, or behind the plugin's.
            given = [getattr(Stages, one) if one in SPECS else one for one in given[:2]] + given[2:]
        target: Any = self._plugin.counters if of == "counters" else self._plugin.chain
        try:
            if name not in _FAR[of]:
                return {"error": f"{of}.{name} cannot be called from a process of its own"}
            return {"value": pack(await getattr(target, name)(*given, **kwargs))}
        except Exception as error:  # noqa: BLE001 - raised there, where it was asked
            return {"error": repr(error)}

    async def _emit(self, event: Any) -> None:
        self._plugin.emit(unpack(event))

    async def _log(self, level: str, text: str, details: dict[str, Any]) -> None:
        if level in ("debug", "info", "warning", "error", "critical"):
            getattr(self._plugin.log, level)(text, **details)


class _Bounded(Link):
    """A link to who is not trusted: a line has a bound."""

    _held = 0

    def data_received(self, data: bytes) -> None:
        """Take what came; too long a line, or one that is none, is the end."""
        self._held = self._held + len(data) if b"\n" not in data else 0
        if self._held > LINE:
            self._transport.abort()
            return
        try:
            super().data_received(data)
        except (ValueError, TypeError, LookupError):
            self._transport.abort()
