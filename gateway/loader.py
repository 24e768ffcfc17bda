"""Finds plugins (bundled, drop-in folders, installed entry points) and builds a chain of them."""

from __future__ import annotations

import hashlib
import heapq
import importlib.util
import inspect
import os
import re
import secrets
import stat
import sys
import traceback
import types
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from gateway.chain import Chain, Step
from gateway.errors import Place, PluginError, Problem
from gateway.hookspecs import SPECS, Stages
from gateway.plugin import Context, Plugin, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pluggy import HookImpl
    from structlog.typing import FilteringBoundLogger

    from gateway.events import Event
    from gateway.hookspecs import Spec
    from gateway.plugin import Services, Site
    from gateway.settings import Tree

Origin = Literal["bundled", "site", "installed"]

#: These run without a section of their own, unless `enabled: false` or replaced.
CORE = frozenset(
    {
        "accounts",
        "badmailfrom",
        "bounces",
        "dot_qmail",
        "locals",
        "percenthack",
        "quadratic_retry",
        "rcpthosts",
        "received",
        "recipient_check",
        "relay_control",
        "remote",
        "sqlite_queue",
        "virtual_domains",
    }
)
_STEM = re.compile(r"[a-z][a-z0-9_]*")
_IGNORED = re.compile(r"[_.].*|test_.*|.*~|.*\.dpkg-.*")
_NAMESPACE = "mailward_plugins"


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin that could run: where it is, and what it would replace."""

    stem: str
    origin: Origin
    path: Path
    digest: str
    #: For an installed plugin: the distribution, and the entry point's value.
    distribution: str = ""
    value: str = ""
    replaces: Path | None = None


@dataclass(slots=True)
class Running:
    """A plugin with its settings and its instance."""

    found: Found
    settings: Section
    instance: Plugin[Any]
    settings_digest: str
    modules: tuple[str, ...] = ()
    #: Kept over from the chain before: its file and settings did not change.
    kept: bool = False


@dataclass(slots=True)
class Generation:
    """One loaded configuration: its chain and its plugins, in order of their stems."""

    number: int
    chain: Chain
    plugins: dict[str, Running]
    #: Stage -> stems in the order in which they are asked.
    order: dict[str, list[str]] = field(default_factory=dict)


def bundled_folder() -> Path:
    """Find the bundled plugins: in the wheel, or beside `gateway/` in a checkout.

    Never `site-packages/plugins`, which may be somebody else's. Raises PluginError.
    """
    here = Path(__file__).parent
    if (inside := here / "_bundled").is_dir():
        return inside
    if (here.parent / "pyproject.toml").is_file() and (here.parent / "plugins").is_dir():
        return here.parent / "plugins"
    raise PluginError("the bundled plugins are missing: install mailward again")


def discover(
    folders: Sequence[Path], sections: frozenset[str] | set[str], distributions: Mapping[str, str]
) -> dict[str, Found]:
    """Find every plugin by stem; a site folder (the last one wins) beats bundled, bundled beats installed.

    `sections` are the sections that the configuration has; an installed plugin counts only with one.
    `distributions` says which distribution may take a stem. Raises PluginError.
    """
    found = _installed(sections, distributions)
    for stem, path in _files(bundled_folder()):
        if stem not in found or not distributions.get(stem):
            found[stem] = Found(stem, "bundled", path, _digest(path))
    for folder in folders:
        _refuse_unsafe(folder)
        for stem, path in _files(folder):
            _refuse_unsafe(path)
            before = found.get(stem)
            found[stem] = Found(stem, "site", path, _digest(path), replaces=before.path if before else None)
    return dict(sorted(found.items()))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise PluginError(f"plugins.folders: cannot read {folder}: {error.strerror}") from error
    for path in entries:
        if _IGNORED.fullmatch(path.name):
            continue
        file = path / "__init__.py" if path.is_dir() else path
        if file.suffix != ".py" or not file.is_file():
            continue
        if not _STEM.fullmatch(path.stem):
            raise PluginError(
                Problem("a plugin's name is [a-z][a-z0-9_]*: rename the file", Place(str(path)))
            )
        yield path.stem, file


def _installed(sections: frozenset[str] | set[str], distributions: Mapping[str, str]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for point in entry_points(group="mailward.plugins"):
        distribution = point.dist.name if point.dist else ""
        if point.name not in sections or (distributions.get(point.name) or distribution) != distribution:
            continue
        if point.name in found:
            both = f"{found[point.name].distribution} and {distribution}"
            raise PluginError(f"{point.name}: installed by {both}: write `distribution:` into its section")
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            raise PluginError(f"{point.name}: {distribution} names {point.module}, which is not there")
        path = Path(spec.origin)
        found[point.name] = Found(point.name, "installed", path, _digest(path), distribution, point.value)
    return found


def _refuse_unsafe(path: Path) -> None:
    """Refuse a file that others than root and we may write, since it runs as us. Raises PluginError."""
    try:
        status = path.stat()
    except OSError as error:
        raise PluginError(f"plugins.folders: cannot read {path}: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()):
        raise PluginError(Problem(f"owned by uid {status.st_uid}: chown it to root", Place(str(path))))
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise PluginError(Problem("others may write it: run chmod go-w", Place(str(path))))


def _digest(file: Path) -> str:
    """Digest a plugin's file, or all files of its folder."""
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.blake2b(digest_size=16)
    for one in files:
        digest.update(str(one).encode() + b"\0" + one.read_bytes())
    return digest.hexdigest()


class Loader:
    """Builds generations. One for each gateway; it keeps instances whose file and settings did not change."""

    def __init__(
        self,
        services: Services,
        emit: Callable[[Event], None],
        logger: Callable[[str], FilteringBoundLogger],
    ) -> None:
        self._services = services
        self._emit = emit
        self._logger = logger
        self._numbers = 0

    def build(
        self,
        tree: Tree,
        site: Site,
        folders: Sequence[Path],
        core_sections: frozenset[str],
        before: Generation | None = None,
    ) -> Generation:
        """Load every plugin that this configuration asks for, and make the chain.

        Nothing of `before` changes. Raises ConfigError (PluginError) with every problem found.
        """
        self._numbers += 1
        sections = set(tree.sections())
        distributions = {name: tree.text(name, "distribution") for name in sections - core_sections}
        found = discover(folders, sections, distributions)
        problems = tree.unknown_sections(core_sections | found.keys())
        running: dict[str, Running] = {}
        for stem, one in found.items():
            if not (one.origin == "site" or stem in CORE or stem in sections):
                continue
            try:
                plugin = self._run(one, tree, site, before)
            except PluginError as error:
                problems += error.problems
                continue
            if plugin is not None:
                running[stem] = plugin
        if problems:
            self._forget(running)
            raise PluginError(problems)
        try:
            return self._generation(running, tree)
        except PluginError:
            self._forget(running)
            raise

    def retire(self, old: Generation, new: Generation | None) -> None:
        """Drop the modules of a generation whose last session and delivery are over."""
        kept = {id(plugin.instance) for plugin in new.plugins.values()} if new else set()
        self._forget({stem: p for stem, p in old.plugins.items() if id(p.instance) not in kept}, every=True)

    def _forget(self, running: Mapping[str, Running], *, every: bool = False) -> None:
        for plugin in running.values():
            if every or not plugin.kept:
                for name in plugin.modules:
                    sys.modules.pop(name, None)

    def _run(self, found: Found, tree: Tree, site: Site, before: Generation | None) -> Running | None:
        digest = tree.digest(found.stem)
        old = before.plugins.get(found.stem) if before else None
        if (
            old
            and old.found.path == found.path
            and old.found.digest == found.digest
            and old.settings_digest == digest
        ):
            return Running(found, old.settings, old.instance, digest, old.modules, kept=True)
        if tree.text(found.stem, "enabled") == "false":
            return None
        module, modules = self._module(found)
        try:
            kind, model = _plugin_of(module, found)
            settings = tree.section(found.stem, model)
            if not settings.enabled:
                return None
            context = Context(
                found.stem, settings, site, self._services, self._logger(found.stem), tree.place
            )
            instance = kind(context)
        except BaseException as error:
            for name in modules:
                sys.modules.pop(name, None)
            raise _blame(error, found) from error
        return Running(found, settings, instance, digest, modules)

    def _module(self, found: Found) -> tuple[types.ModuleType, tuple[str, ...]]:
        """Execute a plugin's file under a name of its own. Raises PluginError with file and line."""
        sys.modules.setdefault(_NAMESPACE, types.ModuleType(_NAMESPACE))
        # Unique in the process: two gateways may live in it.
        name = f"{_NAMESPACE}.{found.stem}_{secrets.token_hex(4)}"
        folder = [str(found.path.parent)] if found.path.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(name, found.path, submodule_search_locations=folder)
        if spec is None or spec.loader is None:
            raise PluginError(Problem("cannot be loaded", Place(str(found.path))))
        module = importlib.util.module_from_spec(spec)
        # Before it runs: dataclasses look their own module up.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            for loaded in _names_under(name):
                sys.modules.pop(loaded, None)
            raise _blame(error, found) from error
        return module, _names_under(name)

    def _generation(self, running: dict[str, Running], tree: Tree) -> Generation:
        manager = _register(running)
        steps: dict[str, list[Step]] = {}
        for name, spec in SPECS.items():
            impls = {impl.plugin_name: impl for impl in getattr(manager.hook, name).get_hookimpls()}
            ordered = order(spec, impls.keys(), running, tree)
            steps[name] = [_step(spec, impls[stem], running[stem]) for stem in ordered]
        for name in ("open_queue", "route", "deliver"):
            if not steps[name]:
                raise PluginError(
                    f"no plugin answers {name}(): enable one, or take `enabled: false` out of its section"
                )
        chain = Chain(SPECS, steps, self._emit)
        for plugin in running.values():
            plugin.instance.join(chain)
        return Generation(
            self._numbers, chain, running, {name: [s.plugin for s in stage] for name, stage in steps.items()}
        )


def _names_under(name: str) -> tuple[str, ...]:
    return tuple(key for key in sys.modules if key == name or key.startswith(f"{name}."))


def _plugin_of(module: types.ModuleType, found: Found) -> tuple[type[Plugin[Any]], type[Section]]:
    """Find the one Plugin class and the Settings of a module. Raises PluginError."""
    if found.value:
        kinds = [getattr(module, found.value.partition(":")[2])]
    else:
        kinds = [
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Plugin) and kind.__module__ == module.__name__
        ]
    if len(kinds) != 1:
        raise PluginError(
            Problem(f"holds {len(kinds)} Plugin classes: write exactly one", Place(str(found.path)))
        )
    model = getattr(module, "Settings", Section)
    if not (isinstance(model, type) and issubclass(model, Section)):
        raise PluginError(Problem("Settings must be a subclass of Section", Place(str(found.path))))
    redefined = Section.model_fields.keys() & vars(model).get("__annotations__", {}).keys()
    if redefined and model is not Section:
        names = ", ".join(sorted(redefined))
        raise PluginError(
            Problem(f"Settings redefines {names}, which every plugin has", Place(str(found.path)))
        )
    return kinds[0], model


def _blame(error: BaseException, found: Found) -> PluginError:
    """Say where in the plugin's file an error came from."""
    if isinstance(error, PluginError):
        return error
    if hasattr(error, "problems"):
        return PluginError(error.problems)
    if isinstance(error, SyntaxError) and error.filename:
        return PluginError(Problem(f"syntax error: {error.msg}", Place(error.filename, error.lineno or 0)))
    folder = str(found.path.parent if found.path.name == "__init__.py" else found.path)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(folder)
    ]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return PluginError(Problem(text, Place(str(found.path), (lines[-1] or 0) if lines else 0)))


def _register(running: Mapping[str, Running]) -> pluggy.PluginManager:
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


def _step(spec: Spec, impl: HookImpl, plugin: Running) -> Step:
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
    edits = "message" in impl.argnames and spec.arguments[-1] == "message"
    return Step(
        plugin.found.stem,
        _adapted(function, impl.argnames, spec.arguments),
        spec.longest if spec.name == "deliver" else settings.deadline,
        settings.on_error == "skip" and not spec.strict,
        settings.dry_run,
        edits,
    )


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
