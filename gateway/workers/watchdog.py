"""Judges workers that give no sign of life, and reads from their stacks which plugin has frozen them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A worker is frozen after so many seconds without a sign of life.
PATIENCE = 4.0
#: While it reads a new configuration, whose files may be large.
LONG_PATIENCE = 60.0
#: How often the watchdog looks.
LOOK = 0.5
_FRAME = re.compile(r'^  File "(.*)", line \d+ in .*$', re.MULTILINE)


class Suspicion:
    """Tells silence of a worker from silence of the whole machine.

    Where the watchdog itself was not run for a while (a suspended machine, a stopped group of processes, a
    load beyond all bounds), workers were not either: that time does not count against them.
    """

    def __init__(self, now: float) -> None:
        self._looked = now
        #: Signs of life from before this time are as if given then.
        self._since = now

    def look(self, now: float) -> None:
        """Call it every LOOK seconds."""
        if now - self._looked > 2 * LOOK:
            self._since = now
        self._looked = now

    def frozen(self, beaten: float, now: float, patience: float = PATIENCE) -> bool:
        """Whether a worker whose last sign of life was at `beaten` has been silent for too long."""
        return now - max(beaten, self._since) > patience


def culprit(stacks: str, plugins: Mapping[str, str]) -> str:
    """Name the plugin whose code is innermost in the stacks of a frozen process, "" when none is there.

    `plugins` are the files by stem; what a plugin calls, and what stands beside a folder's `__init__.py`, is
    its own.
    """
    for part in _loop_first(stacks):
        for path in _FRAME.findall(part):
            for stem, file in plugins.items():
                if path == file or path.startswith(_folder(file)):
                    return stem
    return ""


def _loop_first(stacks: str) -> tuple[str, str]:
    """Put the thread first that the signal has met: that is the loop's."""
    before, _, after = stacks.partition("Current thread ")
    running, _, rest = after.partition("\nThread ")
    return running, before + rest


def _folder(file: str) -> str:
    """Give the folder of a plugin that is one, else nothing that a path begins with."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/" if name == "__init__.py" else "\0"
