"""`isolation: thread`: each call of a plugin in a thread, so that one that blocks holds nobody else up.

Python cannot end a thread. One that is too late is left to itself, its place is given to another call, and
there is a bound to how many may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from gateway.errors import IsolationError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from gateway.plugin import Plugin

#: Calls of one plugin at one time; more wait for their turn, within their deadline.
AT_ONCE = 4
#: Threads that were left to themselves; with more of them the plugin is asked no more until some end.
LEFT = 32


class Threads:
    """The threads of one plugin."""

    def __init__(self, plugin: Plugin[Any]) -> None:
        self._plugin = plugin
        self._turns = asyncio.Semaphore(AT_ONCE)
        #: Threads that nobody waits for any more.
        self.left = 0

    def caller(self, call: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Give the same call, made in a thread."""

        async def in_thread(*args: Any) -> Any:
            async with self._turns:
                return await self._run(call, args)

        return in_thread

    async def _run(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if self.left >= LEFT:
            raise IsolationError(f"{self.left} calls have not ended yet")
        loop = asyncio.get_running_loop()
        self._plugin.relay_by(loop)
        ended: asyncio.Future[Any] = loop.create_future()
        _Call(loop, ended, call, args).start()
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not ended.done():
                self.left += 1
                ended.add_done_callback(self._came_back)
            raise

    def _came_back(self, ended: asyncio.Future[Any]) -> None:
        self.left -= 1
        ended.exception()  # looked at, so that nobody complains of it


class _Call(threading.Thread):
    """One call; it never keeps the process from ending."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ended: asyncio.Future[Any],
        call: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        super().__init__(daemon=True)
        self._loop, self._ended, self._call, self._args = loop, ended, call, args

    def run(self) -> None:
        """Call, and hand over what came of it."""
        value: Any = None
        fault: BaseException | None = None
        try:
            value = self._call(*self._args)
        except StopIteration as error:
            # A future takes no StopIteration, since that is how coroutines end.
            fault = RuntimeError(repr(error))
            fault.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - whatever a plugin raises stays here
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._settle, value, fault)

    def _settle(self, value: Any, fault: BaseException | None) -> None:
        if self._ended.done():
            return
        if fault is None:
            self._ended.set_result(value)
        else:
            self._ended.set_exception(fault)
