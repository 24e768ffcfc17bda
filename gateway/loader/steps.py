"""Makes the steps of every stage: pluggy checks what a plugin implements, and the order is settled."""

from __future__ import annotations

import heapq
import inspect
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pluggy

from gateway.chain import Step
from gateway.errors import Place, PluginError, Problem
from gateway.hookspecs import SPECS, Stages
from gateway.isolation import Process, Threads
from gateway.isolation.process import START
from gateway.settings import Settings
from gateway.settings.faults import hint
from gateway.when import known, test_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pluggy import HookImpl

    from gateway.hookspecs import Spec
    from gateway.loader.build import Running
    from gateway.settings import Tree


def steps_of(running: Mapping[str, Running], tree: Tree) -> dict[str, list[Step]]:
    """Give the plugins of each stage in the order in which they are asked. Raises PluginError."""
    manager = register(running)
    steps: dict[str, list[Step]] = {}
    for name, spec in SPECS.items():
        impls = {impl.plugin_name: impl for impl in getattr(manager.hook, name).get_hookimpls()}
        apart = {stem: step for stem, one in running.items() if (step := _life_apart(name, one))}
        steps[name] = [
            apart[stem] if stem in apart else step_of(spec, impls[stem], running[stem], tree)
            for stem in order(spec, impls | apart, running, tree)
        ]
    return steps


def register(running: Mapping[str, Running]) -> pluggy.PluginManager:
    """Register with pluggy, which checks names and arguments. Raises PluginError."""
    manager = pluggy.PluginManager("mailward")
    manager.add_hookspecs(Stages)
    for stem, plugin in running.items():
        try:
            manager.register(plugin.instance, name=stem)
        except pluggy.PluginValidationError as error:
            raise PluginError(Problem(str(error), Place(str(plugin.found.path)))) from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        path = running[manager.get_name(error.plugin) or ""].found.path
        raise PluginError(Problem(f"{error} (is the stage's name misspelt?)", Place(str(path)))) from error
    return manager


def order(spec: Spec, stems: Any, running: Mapping[str, Running], tree: Tree) -> list[str]:
    """Order the plugins of a stage: by its spec, then by `before:` and `after:`. Raises PluginError."""
    listed = {stem: i for i, stem in enumerate(spec.order)}
    rest = listed.get(..., len(listed))
    rank = {stem: (listed.get(stem, rest), stem) for stem in stems}
    later: dict[str, set[str]] = {stem: set() for stem in rank}
    for stem, plugin in running.items():
        for key, others in (("before", plugin.settings.before), ("after", plugin.settings.after)):
            for i, other in enumerate(others):
                if other not in running:
                    raise PluginError(
                        Problem(f"{stem}.{key}: no plugin {other} runs here", tree.place(stem, key, i))
                    )
                first, second = (stem, other) if key == "before" else (other, stem)
                if first in rank and second in rank:
                    later[first].add(second)
    return _sorted(rank, later, tree)


def _sorted(rank: Mapping[str, tuple[int, str]], later: Mapping[str, set[str]], tree: Tree) -> list[str]:
    waiting = {stem: sum(stem in after for after in later.values()) for stem in rank}
    ready = [rank[stem] for stem, count in waiting.items() if not count]
    heapq.heapify(ready)
    done: list[str] = []
    while ready:
        stem = heapq.heappop(ready)[1]
        done.append(stem)
        for other in sorted(later[stem]):
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, rank[other])
    if len(done) < len(rank):
        circle = sorted(rank.keys() - set(done))
        place = tree.place(circle[0], "before") or tree.place(circle[0], "after")
        raise PluginError(Problem(f"before/after go in a circle: {', '.join(circle)}", place))
    return done


def step_of(spec: Spec, impl: HookImpl, plugin: Running, tree: Tree) -> Step:
    """Make the call of one plugin in one stage. Raises PluginError for what the walk cannot do."""
    function = impl.function
    place = Place(str(plugin.found.path), function.__code__.co_firstlineno)
    if impl.hookwrapper or impl.wrapper:
        raise PluginError(Problem(f"{spec.name}: wrappers are not supported", place))
    if inspect.getfullargspec(function).kwonlyargs:
        raise PluginError(Problem(f"{spec.name}: keyword-only arguments are not supported", place))
    settings = plugin.settings
    if spec.strict and (settings.on_error == "skip" or settings.dry_run):
        raise PluginError(
            Problem(f"{plugin.found.stem}: {spec.name} takes no on_error: skip and no dry_run", place)
        )
    _compare_annotations(spec, function, place)
    _refuse_unknown(spec, plugin, tree)
    edits = "message" in impl.argnames and spec.arguments[-1] == "message"
    call = _adapted(function, impl.argnames, spec.arguments)
    if spec.kind != "life" and plugin.apart is not None:
        _refuse_apart(spec, plugin, function, place)
        if isinstance(plugin.apart, Threads):
            call = plugin.apart.caller(call)
        else:
            call = plugin.apart.caller(spec.name, dry_run=settings.dry_run)
    return Step(
        plugin.found.stem,
        call,
        spec.longest if spec.name == "deliver" else settings.deadline,
        settings.on_error == "skip" and not spec.strict,
        settings.dry_run,
        edits,
        test_of(settings.when, spec),
    )


def _life_apart(name: str, plugin: Running) -> Step | None:
    """Make `startup` and `shutdown` of a plugin that has a process: they begin it and end it."""
    if not isinstance(plugin.apart, Process) or name not in ("startup", "shutdown"):
        return None
    call = plugin.apart.start if name == "startup" else plugin.apart.stop
    return Step(plugin.found.stem, call, 2 * START, skip=False, dry_run=False, edits=False)


def _refuse_apart(spec: Spec, plugin: Running, function: Callable[..., Any], place: Place) -> None:
    """Refuse to isolate what cannot be. Raises PluginError."""
    thread = isinstance(plugin.apart, Threads)
    if spec.name == "open_queue":
        why = "a queue is an object that must live in the gateway"
    elif thread and inspect.iscoroutinefunction(function):
        why = "it is `async def`, which a thread cannot run: take `process`"
    elif spec.name == "deliver" and not thread:
        why = "a delivery that is killed behind its last byte is made twice: take `thread`"
    else:
        return
    text = f"{plugin.found.stem}: {spec.name} takes no isolation: {plugin.settings.isolation}: {why}"
    raise PluginError(Problem(text, place))


def calls_of(plugin: Running, tree: Tree) -> dict[str, Callable[..., Any]]:
    """Give the calls of one plugin by stage, whatever its isolation. Raises PluginError."""
    manager = register({plugin.found.stem: plugin})
    return {
        name: step_of(spec, impl, plugin, tree).call
        for name, spec in SPECS.items()
        for impl in getattr(manager.hook, name).get_hookimpls()
    }


def _refuse_unknown(spec: Spec, plugin: Running, tree: Tree) -> None:
    """Refuse a condition that cannot be told at a stage: a plugin must not be left out in silence."""
    if spec.kind in ("observe", "life"):
        return
    stem = plugin.found.stem
    _refuse_unknown_listeners(stem, plugin.settings.when.listener, tree)
    for key in plugin.settings.when.keys:
        if key not in known(spec):
            what = "recipients are" if key == "domains" else "the client is"
            raise PluginError(
                Problem(
                    f"{stem}.when.{key}: {stem} speaks at {spec.name}, where {what} not known",
                    tree.place(stem, "when", key),
                )
            )


def _refuse_unknown_listeners(stem: str, wanted: Sequence[str], tree: Tree) -> None:
    if not wanted or "listeners" not in tree.sections():
        return
    names = [one.name for one in Settings.of(tree).listeners]
    for number, name in enumerate(wanted):
        if name not in names:
            text = f"{stem}.when.listener[{number}]: there is no listener {name}{hint(name, names)}"
            place = tree.place(stem, "when", "listener", number)
            raise PluginError(Problem(text, place))


def _adapted(
    function: Callable[..., Any], wanted: Sequence[str], offered: Sequence[str]
) -> Callable[..., Any]:
    """Let a plugin take any subset of a stage's arguments."""
    if tuple(wanted) == tuple(offered):
        return function
    if not wanted:
        return lambda *_: function()
    if len(wanted) == 1:
        only = offered.index(wanted[0])
        return lambda *given: function(given[only])
    pick = itemgetter(*map(offered.index, wanted))
    return lambda *given: function(*pick(given))


def _compare_annotations(spec: Spec, function: Callable[..., Any], place: Place) -> None:
    """Refuse an argument annotated as what the stage does not give: neither pluggy nor mypy sees it."""
    wanted = getattr(Stages, spec.name).__annotations__
    for name in spec.arguments:
        given = function.__annotations__.get(name)
        if given is None:
            continue
        text = given if isinstance(given, str) else getattr(given, "__name__", str(given))
        if text.rpartition(".")[2].partition("[")[0] != wanted[name].partition("[")[0]:
            raise PluginError(Problem(f"{spec.name}: {name} is {wanted[name]}, not {text}", place))
