"""Awaits under a deadline: a coroutine is stepped once, and a timer is armed only if it really waits.

Most plugins answer at once, and a timer for each would cost more than all of them.
"""

from __future__ import annotations

import asyncio
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

R = TypeVar("R")
#: What swallows its cancellation is cancelled again this often, in seconds.
CANCEL_AGAIN = 1.0


class TooLate(TimeoutError):
    """The deadline is over. A TimeoutError of the plugin's own is not this one."""


async def under_deadline(awaitable: Awaitable[Any], deadline: float) -> tuple[Any, float]:
    """Give the answer and the seconds that it waited; the timer is armed only if the first step suspends.

    Raises TooLate.
    """
    work: Any = awaitable if type(awaitable) is CoroutineType else _wrap(awaitable)
    try:
        waiting = work.send(None)
    except StopIteration as done:
        return done.value, 0.0
    return await _under(work, waiting, deadline)


def first_step(work: Coroutine[Any, Any, Any]) -> Any:
    """Step a coroutine once: gives its answer, or what is to be awaited for it."""
    try:
        return resume(work, work.send(None))
    except StopIteration as done:
        return done.value


async def _wrap(awaitable: Awaitable[R]) -> R:
    return await awaitable


@coroutine
def resume(work: Coroutine[Any, Any, R], waiting: Any) -> Generator[Any, Any, R]:
    """Go on with a coroutine that has been stepped once, in the same task."""
    while True:
        try:
            sent = yield waiting
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:  # noqa: BLE001 - handed on to the coroutine
            step: Callable[[Any], Any] = work.throw
            argument: Any = error
        else:
            step, argument = work.send, sent
        try:
            waiting = step(argument)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


async def _under(work: Coroutine[Any, Any, R], waiting: Any, deadline: float) -> tuple[R, float]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    timer = _Timer(loop, asyncio.current_task(), deadline)
    try:
        value = await resume(work, waiting)
    except asyncio.CancelledError:
        if not timer.fired:
            raise
    finally:
        fired = timer.stop()
    if fired:
        raise TooLate
    return value, loop.time() - started


class _Timer:
    """Cancels a task when its time is over, and again until it ends: a plugin may swallow a cancellation."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None, deadline: float
    ) -> None:
        self._loop = loop
        self._task = task
        self._cancels = 0
        self._handle = loop.call_later(max(deadline, 0), self._cancel)

    @property
    def fired(self) -> bool:
        """Whether the cancellation that the task sees is only ours."""
        return self._task is not None and 0 < self._cancels == self._task.cancelling()

    def stop(self) -> bool:
        """Take our cancellations back; tell whether there were any."""
        self._handle.cancel()
        for _ in range(self._cancels):
            if self._task is not None:
                self._task.uncancel()
        return self._cancels > 0

    def _cancel(self) -> None:
        if self._task is not None:
            self._cancels += 1
            self._task.cancel()
            self._handle = self._loop.call_later(CANCEL_AGAIN, self._cancel)
