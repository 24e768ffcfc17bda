"""One reading of conf.d: the tree of it, and the sections that are the gateway's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import ConfigError, Problem
from gateway.plugin import Site
from gateway.settings import Settings
from gateway.settings.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Configuration:
    """One reading of conf.d: the tree, and the core sections of it."""

    folder: Path
    tree: Tree
    settings: Settings

    @classmethod
    def load(cls, folder: Path, base: Path | None = None) -> Configuration:
        """Read conf.d; `base` is where relative paths start. Raises ConfigError."""
        tree = Tree.load(folder, base)
        return cls(folder, tree, Settings.of(tree))

    @classmethod
    def parse(cls, folder: Path, texts: Mapping[str, str], base: Path) -> Configuration:
        """Make it of what another process has read: all processes have one, whatever the files say by now."""
        tree = Tree.parse(texts, base)
        return cls(folder, tree, Settings.of(tree))

    @property
    def site(self) -> Site:
        """What plugins may know."""
        gateway = self.settings.gateway
        return Site(
            gateway.hostname,
            gateway.postmaster,
            gateway.state,
            self.tree.base,
            self.settings.queue.lifetime,
            conf=self.folder.absolute(),
        )

    @property
    def workers(self) -> int:
        """How many processes serve; `auto` is one for each core that this process may use."""
        wanted = self.settings.gateway.workers
        return len(os.sched_getaffinity(0)) if wanted == "auto" else wanted

    def follows(self, before: Configuration) -> None:
        """Check that a gateway may change to this one while it runs. Raises ConfigError."""
        old, new = before.settings.gateway, self.settings.gateway
        fixed = {"state": new.state == old.state, "workers": self.workers == before.workers}
        for key, same in fixed.items():
            if not same:
                place = self.tree.place("gateway", key)
                raise ConfigError(Problem(f"gateway.{key}: a change needs a restart", place))


def make_state(folder: Path) -> None:
    """Make the state folder, for us alone. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(f"gateway.state: cannot write {folder}: {error.strerror}") from error
