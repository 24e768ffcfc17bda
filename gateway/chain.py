"""Asks the plugins of one stage: in order, awaiting what is awaitable, each under its own deadline.

pluggy registers and checks; it cannot await, so the walk is here, over tuples made when the chain is
built. A coroutine is stepped once in the caller's task and a timer is armed only if it really waits.
A plugin that raises, answers junk or is too late never opens a door: its stage hears `on_error`.

What each plugin did is counted as it goes, and its time is taken of some calls only: a clock that is read
for each would cost more than a plugin that says nothing.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gateway.deadline import TooLate, first_step, under_deadline
from gateway.decision import Defer
from gateway.events import EventsDropped, PluginDryRun, PluginFailed, PluginTimedOut
from gateway.hookspecs import Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gateway.events import Event
    from gateway.hookspecs import Hook, Spec
    from gateway.message import Message

R = TypeVar("R")
#: Facts that wait for observers; past it the newest are dropped and counted.
OBSERVER_BACKLOG = 10_000
#: The first calls of a stage are all timed, then one in so many (a power of two).
SAMPLE = 64
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
    #: Whether a call concerns the plugin (`when:`); None when every call does.
    concerns: Callable[..., bool] | None = None
    tally: Tally = field(default_factory=lambda: Tally(), compare=False)  # noqa: PLW0108 - it stands below


@dataclass(slots=True)
class Tally:
    """What one plugin did in one stage since the chain was made."""

    #: Calls beside the walk of `ask`, which counts its own.
    calls: int = 0
    #: Of the calls, those that its `when` has left out.
    passed: int = 0
    answers: int = 0
    faults: int = 0
    #: Answers and faults that ended the stage: plugins behind were not asked.
    ends: int = 0
    #: Calls that were timed, how long they took together, and the longest, in seconds.
    timed: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def took(self, seconds: float) -> None:
        """Take the time of a call."""
        self.timed += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)


@dataclass(frozen=True, slots=True)
class Figures:
    """What `mailward stages` shows of one plugin in one stage, since its chain is in use."""

    stage: str
    plugin: str
    asked: int
    answers: int
    faults: int
    #: Of the calls that were timed: how many, how long together, and the longest, in seconds.
    timed: int
    seconds: float
    longest: float


@dataclass(slots=True)
class _Walk:
    """The steps of one stage, each with its call where nothing but the call is to be done."""

    steps: tuple[tuple[Step, Callable[..., Any] | None], ...]
    #: The same where the time is taken.
    timed: tuple[tuple[Step, None], ...]
    asked: int = 0

    @classmethod
    def of(cls, steps: Sequence[Step]) -> _Walk:
        quick = tuple((one, None if one.edits or one.concerns else one.call) for one in steps)
        return cls(quick, tuple((one, None) for one in steps))


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
        self._walks = {name: _Walk.of(all_) for name, all_ in self.steps.items()}
        self._by_plugin = {(name, step.plugin): step for name, all_ in self.steps.items() for step in all_}
        self._backlog: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._dropped = 0
        self._observer: asyncio.Task[None] | None = None
        self._observing_event = False

    async def ask(self, hook: Hook[R], *args: Any) -> Answer[R]:
        """Ask a decide or provide stage; the first opinion ends it."""
        spec: Spec = hook.spec  # type: ignore[attr-defined]
        walk = self._walks[spec.name]
        walk.asked += 1
        steps = walk.steps if walk.asked > SAMPLE and walk.asked % SAMPLE else walk.timed
        waited = 0.0
        for step, quick in steps:
            if quick is None:
                begun = None
            else:
                # Nearly all calls end here: a plugin that says nothing costs little more than its call.
                try:
                    begun = quick(*args)
                    if type(begun) is CoroutineType:
                        begun = first_step(begun)
                except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001
                    begun = _raising(error)
                if begun is None:
                    continue
            try:
                value, waited = await self._call(spec, step, args, waited, begun)
            except _Fault:
                step.tally.ends += 1
                return self._fault(spec, step)
            if value is not None:
                step.tally.ends += 1
                return Answer(value, step.plugin)
        return Answer()

    async def ask_plugin(self, plugin: str, hook: Hook[R], *args: Any) -> Answer[R]:
        """Ask one plugin only (`deliver` and `exists` go to the plugin that the route names)."""
        spec: Spec = hook.spec  # type: ignore[attr-defined]
        step = self._by_plugin.get((spec.name, plugin))
        if step is None:
            return Answer()
        step.tally.calls += 1
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
        for step, quick in self._walks[spec.name].steps:
            changed = []
            for item in current if isinstance(current, list) else [current]:
                step.tally.calls += 1
                begun = None
                if quick is not None and step.tally.calls > SAMPLE and step.tally.calls % SAMPLE:
                    begun = _begin(quick, (*before, item))
                    if begun is None:
                        changed.append(item)
                        continue
                try:
                    value, waited = await self._call(spec, step, (*before, item), waited, begun)
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
        except (Exception, SystemExit) as error:
            if not quiet:
                raise error if isinstance(error, Exception) else RuntimeError(repr(error)) from error
            text = "".join(traceback.format_exception(error))
            stage = hook.spec.name  # type: ignore[attr-defined]
            self.emit(PluginFailed(plugin=plugin, stage=stage, error=repr(error), traceback=text))

    async def drain(self) -> None:
        """Wait until observers have seen all they were told."""
        if self._observer is not None:
            await asyncio.wait([self._observer])

    def figures(self) -> Iterator[Figures]:
        """Give what every plugin did in every stage since this chain is in use."""
        for stage, all_ in self.steps.items():
            reached = self._walks[stage].asked
            for step in all_:
                one = step.tally
                asked = reached + one.calls - one.passed
                yield Figures(
                    stage, step.plugin, asked, one.answers, one.faults, one.timed, one.seconds, one.longest
                )
                reached -= one.ends

    def _fault(self, spec: Spec, step: Step) -> Answer[Any]:
        return Answer(FAULT if spec.kind == "decide" else None, step.plugin, failed=True)

    async def _call(
        self, spec: Spec, step: Step, args: tuple[Any, ...], waited: float, begun: Any = None
    ) -> tuple[Any, float]:
        """Call one plugin, or take a call that has begun. Gives its answer and the seconds waited so far."""
        if step.concerns is not None and not step.concerns(*args):
            step.tally.passed += 1
            return None, waited
        given, original = args, None
        if step.edits:
            # Edits count only when the call comes back in time and whole (dry run: never).
            original = args[-1]
            given = (*args[:-1], original.copy())
        started = time.perf_counter()
        try:
            value = step.call(*given) if begun is None else begun
            if hasattr(value, "__await__") or isinstance(value, GeneratorType):
                value, took = await under_deadline(value, min(step.deadline, spec.longest - waited))
                waited += took
            _check(spec, value)
        except TooLate as error:
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
        finally:
            step.tally.took(time.perf_counter() - started)
        return self._used(spec, step, value, (original, given[-1]) if original is not None else None), waited

    def _used(self, spec: Spec, step: Step, value: Any, edited: tuple[Message, Message] | None) -> Any:
        """Give what a whole answer comes to: a dry run's is only told."""
        if value is not None:
            step.tally.answers += 1
        if step.dry_run:
            if value is not None:
                self.emit(PluginDryRun(plugin=step.plugin, stage=spec.name, answer=repr(value)))
            return None
        if edited is not None and spec.kind == "decide":
            edited[0].adopt(edited[1])
        return value

    def _raised(self, spec: Spec, step: Step, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        self.emit(PluginFailed(plugin=step.plugin, stage=spec.name, error=repr(error), traceback=text))
        self._failed(step, error)

    def _failed(self, step: Step, error: BaseException) -> None:
        step.tally.faults += 1
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
        step.tally.calls += 1
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


def _begin(call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a plugin that is told nothing it could edit; gives its answer, or what is to be awaited for it."""
    try:
        value = call(*args)
        return first_step(value) if type(value) is CoroutineType else value
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001
        return _raising(error)


async def _raising(error: BaseException) -> None:
    raise error
