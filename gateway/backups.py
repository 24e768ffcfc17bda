"""Backups by schedule: `queue.backup`. Each is made by a process of its own, so that mail goes on meanwhile.

When the next is due is read from the names of those that are there: a restart neither skips one nor makes one
too many.
"""

from __future__ import annotations

import asyncio
import calendar
import json
import re
import sys
import time
from typing import TYPE_CHECKING

from gateway import events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.configuration import Configuration
    from gateway.settings.core import Backup

#: Seconds between two looks at whether one is due: the settings may have changed.
LOOK = 1.0
#: One that failed is tried again after this many seconds, or when the next is due.
AGAIN = 60.0
_STAMP = "%Y%m%dT%H%M%SZ"
#: One of ours; or, with a dot before it, the rest of one that was not finished.
_OURS = re.compile(r"(\.)?queue-(\d{8}T\d{6}Z)\.tar(?(1)\..*)")


class Backups:
    """Makes the backups of one gateway."""

    def __init__(
        self, configuration: Callable[[], Configuration], emit: Callable[[events.Event], None]
    ) -> None:
        self._configuration = configuration
        self._emit = emit
        self._not_before = 0.0

    async def run(self) -> None:
        """Make them until cancelled."""
        while True:
            wanted = self._configuration().settings.queue.backup
            now = time.time()
            if wanted and now >= self._not_before:
                try:
                    if now >= await asyncio.to_thread(_due, wanted):
                        await self._make(wanted, now)
                except OSError as error:
                    self._failed(wanted, str(error))
            await asyncio.sleep(LOOK)

    async def _make(self, wanted: Backup, now: float) -> None:
        await asyncio.to_thread(_sweep, wanted)
        file = wanted.to / f"queue-{time.strftime(_STAMP, time.gmtime(now))}.tar"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.commands.queue.scheduled", str(file)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            made, said = await process.communicate(self._told())
        except asyncio.CancelledError:
            process.kill()
            raise
        if process.returncode:
            self._failed(wanted, said.decode("utf-8", "replace").strip()[-1000:])
            return
        try:
            await asyncio.to_thread(_prune, wanted)
        finally:
            self._emit(events.QueueBackup(file=str(file), **json.loads(made)))

    def _told(self) -> bytes:
        """Give the configuration in use: the files may have changed, and may not be ours to read."""
        configuration = self._configuration()
        tree = configuration.tree
        told = {"folder": str(configuration.folder), "base": str(tree.base), "texts": dict(tree.texts)}
        return json.dumps(told).encode()

    def _failed(self, wanted: Backup, error: str) -> None:
        self._not_before = time.time() + min(AGAIN, wanted.every)
        self._emit(events.QueueBackupFailed(error=error))


def _found(wanted: Backup, *, whole: bool) -> list[tuple[str, Path]]:
    """Give those that are there, oldest first, or what is left of others."""
    if not wanted.to.is_dir():
        return []
    names = [(_OURS.fullmatch(path.name), path) for path in wanted.to.iterdir()]
    return sorted((name[2], path) for name, path in names if name and bool(name[1]) != whole)


def _due(wanted: Backup) -> float:
    found = _found(wanted, whole=True)
    return calendar.timegm(time.strptime(found[-1][0], _STAMP)) + wanted.every if found else 0.0


def _sweep(wanted: Backup) -> None:
    wanted.to.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _, path in _found(wanted, whole=False):
        path.unlink(missing_ok=True)


def _prune(wanted: Backup) -> None:
    for _, path in _found(wanted, whole=True)[: -wanted.keep]:
        path.unlink(missing_ok=True)
