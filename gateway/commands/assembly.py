"""A chain as the configuration would make it, beside any running gateway, for commands that look at it."""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from gateway.counters import Counters
from gateway.errors import ConfigError
from gateway.events import PluginFailed, PluginTimedOut
from gateway.loader import Loader
from gateway.plugin import Services
from gateway.services import Clock, Dns
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

    from gateway.events import Event
    from gateway.loader import Generation
    from gateway.worker import Configuration


@dataclass(frozen=True, slots=True)
class Assembly:
    """A configuration with its chain. No listener, no queue; `startup` of the plugins was not run."""

    configuration: Configuration
    generation: Generation
    #: What plugins emitted and logged since; commands show failures from here.
    emitted: list[Event]
    logged: list[str]

    @classmethod
    def of(cls, configuration: Configuration) -> Assembly:
        """Load the plugins; as root, become the gateway's user for good before. Raises ConfigError."""
        leave_root(configuration.settings)
        emitted: list[Event] = []
        logged: list[str] = []
        clock = Clock()
        services = Services(clock, Dns(), Counters(clock))
        loader = Loader(services, emitted.append, lambda stem: _logger(stem, logged))
        folders = configuration.settings.plugins.folders
        generation = loader.build(configuration.tree, configuration.site, folders, Settings.names())
        return cls(configuration, generation, emitted, logged)

    def failure(self, plugin: str) -> str:
        """Say what a plugin failed of last, on one line; a client hears only 451 4.3.0."""
        for event in reversed(self.emitted):
            if isinstance(event, PluginFailed) and event.plugin == plugin:
                return _said(event.traceback.rstrip().rpartition("\n")[2])
            if isinstance(event, PluginTimedOut) and event.plugin == plugin:
                return f"no answer within {event.deadline:g} s"
        return "for no reason that is known"


def _said(line: str) -> str:
    """Give the last line of a traceback without the name of a module, which is ours and not a person's."""
    kind, colon, text = line.partition(": ")
    if kind.startswith("gateway.errors."):
        return text
    return f"{kind.rpartition('.')[2]}{colon}{text}" if re.fullmatch(r"\w+(\.\w+)*", kind) else line


def leave_root(settings: Settings) -> None:
    """Become the gateway's user, or nobody: plugins are never run as root. Raises ConfigError."""
    if os.geteuid() != 0:
        return
    user = settings.gateway.user or "nobody"
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"gateway.user: there is no user {user}") from None
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def apart(work: Callable[[], list[str]]) -> list[str]:
    """Do work that may leave root, and stay who we are. Raises ConfigError with what it raised."""
    if os.geteuid() != 0:
        return work()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        _work_and_end(work, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        said: dict[str, Any] = json.loads(
            answer.read() or b'{"error": "the check ended before it had answered"}'
        )
    os.waitpid(child, 0)
    if "error" in said:
        raise ConfigError(said["error"])
    return list(said["done"])


def _work_and_end(work: Callable[[], list[str]], answer: int) -> NoReturn:
    try:
        said: dict[str, Any] = {"done": work()}
    except ConfigError as error:
        said = {"error": str(error)}
    os.write(answer, json.dumps(said).encode())
    sys.stdout.flush()
    os._exit(0)


def _logger(stem: str, lines: list[str]) -> FilteringBoundLogger:
    def keep(_: WrappedLogger, level: str, said: EventDict) -> EventDict:
        text = said.pop("event")
        details = " ".join(f"{key}={value}" for key, value in said.items() if key != "plugin")
        if level not in ("debug", "info"):
            lines.append(f"{stem}: {text} {details}".rstrip())
        raise structlog.DropEvent

    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, [keep], structlog.make_filtering_bound_logger(0)
    )
    return logger
