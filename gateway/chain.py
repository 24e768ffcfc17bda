"""Asks the plugins of one stage: in order, awaiting what is awaitable, each under its own deadline.

pluggy registers and checks; it cannot await, so the walk is here, over tuples made when the chain is
built. A coroutine is stepped once in the caller's task and a timer is armed only if it really waits.
A plugin that raises, answers junk or is too late never opens a door: its stage hears `on_error`.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from dataclasses import dataclass
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gateway.decision import Defer
from gateway.events import EventsDropped, PluginDryRun, PluginFailed, PluginTimedOut
from gateway.hookspecs import Stages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence

    from gateway.events import Event
    from gateway.hookspecs import Hook, Spec

R = TypeVar("R")
#: Facts that wait for observers; past it the newest are dropped and counted.
OBSERVER_BACKLOG = 10_000
#: A plugin that swallows its cancellation is cancelled again this often, in seconds.
CANCEL_AGAIN = 1.0
#: What a client hears of any plugin's fault.
FAULT = Defer("4.3.0", "temporary failure, try again later", reason="plugin_failed")


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """What a stage said and which plugin said it; `value` is None when nobody spoke."""

    value: R | None = None
    plugin: str = ""
    #: The plugin failed: for a decide stage `value` is then a Defer.
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One plugin in one stage."""

    plugin: str
    call: Callable[..., Any]
    deadline: float
    skip: bool
    dry_run: bool
    #: Whether the plugin's method takes the message, so that it gets a copy to edit.
    edits: bool


class _Fault(Exception):
    """A plugin failed and its policy is to defer."""


class Chain:
    """The plugins of one configuration, ready to be asked. One generation; a reload makes another."""

    def __init__(
        self,
        specs: Mapping[str, Spec],
        steps: Mapping[str, Sequence[Step]],
        emit: Callable[[Event], None],
    ) -> None:
        self.specs = specs
        self.steps = {name: tuple(steps.get(name, ())) for name in specs}
        self._emit = emit
        self._by_plugin = {(name, step.plugin): step for name, all_ in self.steps.items() for step in all_}
        self._backlog: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._dropped = 0
        self._observer: asyncio.Task[None] | None = None
        self._observing_event = False

    async def ask(self, hook: Hook[R], *args: Any) -> Answer[R]:
        """Ask a decide or provide stage; the first opinion ends it."""
        spec: Spec = hook.spec  # type: ignore[attr-defined]
        waited = 0.0
        for step in self.steps[spec.name]:
            try:
                value, waited = await self._call(spec, step, args, waited)
            except _Fault:
                return self._fault(spec, step)
            if value is not None:
                return Answer(value, step.plugin)
        return Answer()

    async def ask_plugin(self, plugin: str, hook: Hook[R], *args: Any) -> Answer[R]:
        """Ask one plugin only (`deliver` and `exists` go to the plugin that the route names)."""
        spec: Spec = hook.spec  # type: ignore[attr-defined]
        step = self._by_plugin.get((spec.name, plugin))
        if step is None:
            return Answer()
        try:
            value, _ = await self._call(spec, step, args, 0.0)
        except _Fault:
            return self._fault(spec, step)
        return Answer(value, step.plugin)

    async def transform(self, hook: Hook[Any], *args: Any) -> Answer[Any]:
        """Pass the last argument through every plugin of a stage; a list is passed item by item.

        The value is a list when any plugin answered with one.
        """
        spec: Spec = hook.spec  # type: ignore[attr-defined]
        *before, current = args
        waited = 0.0
        for step in self.steps[spec.name]:
            changed = []
            for item in current if isinstance(current, list) else [current]:
                try:
                    value, waited = await self._call(spec, step, (*before, item), waited)
                except _Fault:
                    return Answer(current, step.plugin, failed=True)
                changed += [item] if value is None else value if isinstance(value, list) else [value]
            current = changed[0] if len(changed) == 1 else changed
        return Answer(current)

    def tell(self, hook: Hook[None], *args: Any) -> None:
        """Tell a fact to observers, after it: never waits, never fails."""
        spec: Spec = hook.spec  # type: ignore[attr-defined]
        if not self.steps[spec.name]:
            return
        if len(self._backlog) >= OBSERVER_BACKLOG:
            self._dropped += 1
            return
        self._backlog.append((spec.name, args))
        if self._observer is None or self._observer.done():
            self._observer = asyncio.get_running_loop().create_task(self._observe())

    def emit(self, event: Event) -> None:
        """Write an event to the journal and show it to observers, who never see what they emit themselves."""
        self._emit(event)
        if self.steps["event"] and not self._observing_event:
            self.tell(Stages.event, event)

    async def life(self, plugin: str, hook: Hook[None], *, quiet: bool = False) -> None:
        """Run `startup` or `shutdown` of one plugin; what it raises is an event when `quiet`, else raised."""
        step = self._by_plugin.get((hook.spec.name, plugin))  # type: ignore[attr-defined]
        if step is None:
            return
        try:
            value = step.call()
            if hasattr(value, "__await__"):
                await asyncio.wait_for(value, step.deadline)
        except Exception as error:
            if not quiet:
                raise
            text = "".join(traceback.format_exception(error))
            stage = hook.spec.name  # type: ignore[attr-defined]
            self.emit(PluginFailed(plugin=plugin, stage=stage, error=repr(error), traceback=text))

    async def drain(self) -> None:
        """Wait until observers have seen all they were told."""
        if self._observer is not None:
            await asyncio.wait([self._observer])

    def _fault(self, spec: Spec, step: Step) -> Answer[Any]:
        return Answer(FAULT if spec.kind == "decide" else None, step.plugin, failed=True)

    async def _call(self, spec: Spec, step: Step, args: tuple[Any, ...], waited: float) -> tuple[Any, float]:
        """Call one plugin. Gives its answer and the seconds that this stage has waited so far."""
        given, original = args, None
        if step.edits:
            # Edits count only when the call comes back in time and whole (dry run: never).
            original = args[-1]
            given = (*args[:-1], original.copy())
        try:
            value = step.call(*given)
            if type(value) is CoroutineType or hasattr(value, "__await__"):
                value, took = await _first_step(value, min(step.deadline, spec.longest - waited))
                waited += took
            _check(spec, value)
        except TimeoutError as error:
            self.emit(PluginTimedOut(plugin=step.plugin, stage=spec.name, deadline=step.deadline))
            self._failed(step, error)
            return None, waited
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._raised(spec, step, error)
            return None, waited
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises stays here
            self._raised(spec, step, error)
            return None, waited
        if step.dry_run:
            if value is not None:
                self.emit(PluginDryRun(plugin=step.plugin, stage=spec.name, answer=repr(value)))
            return None, waited
        if original is not None and spec.kind == "decide":
            original.adopt(given[-1])
        return value, waited

    def _raised(self, spec: Spec, step: Step, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        self.emit(PluginFailed(plugin=step.plugin, stage=spec.name, error=repr(error), traceback=text))
        self._failed(step, error)

    def _failed(self, step: Step, error: BaseException) -> None:
        if not (step.skip or step.dry_run):
            raise _Fault from error

    async def _observe(self) -> None:
        while self._backlog:
            name, args = self._backlog.popleft()
            self._observing_event = name == "event"
            for step in self.steps[name]:
                await self._show(self.specs[name], step, args)
            self._observing_event = False
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._emit(EventsDropped(count=dropped, reason="observers_slow"))

    async def _show(self, spec: Spec, step: Step, args: tuple[Any, ...]) -> None:
        try:
            await self._call(spec, step, args, 0.0)
        except _Fault:
            return


def _check(spec: Spec, value: Any) -> None:
    """Refuse an answer that is not of this stage. Raises TypeError."""
    if value is None or spec.kind in ("observe", "life"):
        return
    if not spec.answers.intersection(kind.__name__ for kind in type(value).__mro__):
        allowed = ", ".join(sorted(spec.answers))
        raise TypeError(f"{spec.name}() must answer {allowed} or None, not {value!r}")


async def _first_step(awaitable: Awaitable[Any], deadline: float) -> tuple[Any, float]:
    """Await under a deadline; the timer is armed only if the first step suspends."""
    work: Any = awaitable if type(awaitable) is CoroutineType else _wrap(awaitable)
    try:
        waiting = work.send(None)
    except StopIteration as done:
        return done.value, 0.0
    return await _under(work, waiting, deadline)


async def _wrap(awaitable: Awaitable[R]) -> R:
    return await awaitable


@coroutine
def _resume(work: Coroutine[Any, Any, R], waiting: Any) -> Generator[Any, Any, R]:
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
        value = await _resume(work, waiting)
    except asyncio.CancelledError:
        if not timer.fired:
            raise
    finally:
        fired = timer.stop()
    if fired:
        raise TimeoutError
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
