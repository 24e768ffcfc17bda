"""Plain functions that build what a test needs: a chain of real plugin files, a session, a transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from gateway.address import Address
from gateway.counters import Counters
from gateway.envelope import Client, Session, Transaction, new_id
from gateway.loader import Loader
from gateway.plugin import Services, Site
from gateway.services import Clock, Dns
from gateway.settings import Settings
from gateway.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.chain import Chain
    from gateway.events import Event
    from gateway.loader import Generation


@dataclass
class Bench:
    """A loader with what it emits; `build` gives a generation of plugins from YAML and plugin files."""

    base: Path
    services: Services = field(default_factory=lambda: Services(Clock(), Dns(), Counters(Clock())))
    emitted: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loader = Loader(self.services, self.emitted.append, structlog.get_logger)
        self.folder = self.base / "plugins"
        self.folder.mkdir(exist_ok=True)

    def write(self, plugins: Mapping[str, str]) -> None:
        """Write plugin files into the site's folder: stem -> source."""
        for stem, source in plugins.items():
            (self.folder / f"{stem}.py").write_text(source)

    def build(self, yaml: str = "", before: Generation | None = None) -> Generation:
        """Build a generation of the bundled plugins, those in the folder, and this configuration."""
        tree = Tree.parse({"conf.d/site.yaml": yaml}, base=self.base)
        site = Site("mail.example.org", "postmaster@example.org", self.base / "state", self.base, 604800.0)
        return self.loader.build(tree, site, [self.folder], Settings.names(), before)

    def chain(self, yaml: str = "", **plugins: str) -> Chain:
        """Write plugin files and give the chain with them."""
        self.write(plugins)
        return self.build(yaml).chain

    def told(self, name: str) -> list[Event]:
        """Give the events of this name that were emitted."""
        return [event for event in self.emitted if name == event.NAME]


def session(ip: str = "192.0.2.7", **more: Any) -> Session:
    """Make a session of a client."""
    return Session(new_id(), "mx", "smtp", Client(ip), **more)


def transaction(sender: str = "sender@example.com", *, ip: str = "192.0.2.7", **more: Any) -> Transaction:
    """Make a transaction of such a session."""
    return Transaction(new_id(), Address(sender), "smtp", session(ip), **more)
