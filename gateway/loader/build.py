"""Runs plugin files, makes their instances, and builds a chain of them."""

from __future__ import annotations

import base64
import pickle
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gateway.agency import AS_ACCOUNT
from gateway.chain import Chain
from gateway.errors import PluginError
from gateway.hookspecs import SPECS
from gateway.isolation import Process, Threads
from gateway.loader.files import blame, execute, plugin_of
from gateway.loader.find import discover
from gateway.loader.report import reasons
from gateway.loader.steps import steps_of
from gateway.plugin import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from gateway.agency import Agency
    from gateway.chain import Step
    from gateway.events import Event
    from gateway.loader.find import Found
    from gateway.plugin import Plugin, Section, Services, Site
    from gateway.settings import Tree

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
        "submission",
        "virtual_domains",
    }
)


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
    #: What runs it apart from the gateway, where `isolation` wants that.
    apart: Threads | Process | None = None


@dataclass(slots=True)
class Generation:
    """One loaded configuration: its chain and its plugins, in order of their stems."""

    number: int
    chain: Chain
    plugins: dict[str, Running]
    #: Stage -> stems in the order in which they are asked.
    order: dict[str, list[str]] = field(default_factory=dict)
    #: (stage, stem) -> why it stands there.
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def unshared(self, others: Iterable[Generation]) -> list[str]:
        """Give the stems of the plugins whose instances no other of these generations has."""
        shared = {id(plugin.instance) for one in others for plugin in one.plugins.values()}
        return [stem for stem, plugin in self.plugins.items() if id(plugin.instance) not in shared]


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
                plugin = self._kept(one, tree, before) or self.load(one, tree, site)
            except PluginError as error:
                problems += error.problems
                continue
            if plugin is not None:
                plugin.apart = plugin.apart or _apart(plugin, tree, site)
                running[stem] = plugin
        if problems:
            self._forget(running)
            raise PluginError(problems)
        try:
            return self._generation(running, tree)
        except PluginError:
            self._forget(running)
            raise

    def retire(self, old: Generation, *others: Generation | None) -> None:
        """Drop the modules of a generation whose last session and delivery are over."""
        self._forget({stem: old.plugins[stem] for stem in old.unshared(filter(None, others))}, every=True)

    def _forget(self, running: Mapping[str, Running], *, every: bool = False) -> None:
        for plugin in running.values():
            if every or not plugin.kept:
                for name in plugin.modules:
                    sys.modules.pop(name, None)

    def _kept(self, found: Found, tree: Tree, before: Generation | None) -> Running | None:
        """Give a plugin of the chain before whose file and settings did not change."""
        old = before.plugins.get(found.stem) if before else None
        if old is None or (old.found.path, old.found.digest, old.settings_digest) != (
            found.path,
            found.digest,
            tree.digest(found.stem),
        ):
            return None
        return replace(old, found=found, kept=True)

    def load(self, found: Found, tree: Tree, site: Site) -> Running | None:
        """Run a plugin's file and make its instance; None when it is not enabled. Raises PluginError."""
        if tree.text(found.stem, "enabled") == "false":
            return None
        module, modules = execute(found)
        try:
            kind, model = plugin_of(module, found)
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
            raise blame(error, found) from error
        return Running(found, settings, instance, tree.digest(found.stem), modules)

    def _generation(self, running: dict[str, Running], tree: Tree) -> Generation:
        steps = steps_of(running, tree)
        if self._services.agency is not None:
            _as_accounts(steps, running, self._services.agency)
        for name in ("open_queue", "route", "deliver"):
            if not steps[name]:
                raise PluginError(
                    f"no plugin answers {name}(): enable one, or take `enabled: false` out of its section"
                )
        chain = Chain(SPECS, steps, self._emit)
        for plugin in running.values():
            plugin.instance.join(chain)
        stems = {name: [one.plugin for one in stage] for name, stage in steps.items()}
        why: dict[tuple[str, str], str] = {}
        for name, spec in SPECS.items():
            why |= reasons(spec, stems[name], running, tree)
        return Generation(self._numbers, chain, running, stems, why)


def _as_accounts(steps: Mapping[str, list[Step]], running: Mapping[str, Running], agency: Agency) -> None:
    """Have what belongs to an account done as that account."""
    for stage in ("deliver", "exists"):
        steps[stage][:] = [
            agency.bound(step, running[step.plugin].instance, stage) if step.plugin in AS_ACCOUNT else step
            for step in steps[stage]
        ]


def _apart(plugin: Running, tree: Tree, site: Site) -> Threads | Process | None:
    """Make what runs a plugin apart from the gateway."""
    if plugin.settings.isolation == "thread":
        return Threads(plugin.instance)
    if plugin.settings.isolation == "process":
        # Pickled for our own child; nothing that comes back is.
        known = pickle.dumps((plugin.found, tree.only(plugin.found.stem), site))
        opening = {"found": base64.b64encode(known).decode()}
        return Process(plugin.instance, opening, plugin.settings.deadline)
    return None
