"""The suspended destinations: one small file beside the shards, for all workers of the gateway."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from gateway.queue import QueueError, Suspension

from .disk import sync

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

R = TypeVar("R")
Named = dict[str, Suspension]


class Suspensions:
    """Reads the file when it has changed; changes are under a lock, and atomic."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._named: Named = {}

    def read(self) -> Named:
        """Give what is suspended by name. Raises QueueError."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._seen, self._named = None, {}
            return self._named
        # Each change makes a new file, so these two tell one from the other.
        seen = status.st_ino, status.st_mtime_ns
        if seen != self._seen:
            try:
                found = [Suspension(**one) for one in json.loads(self._path.read_text("utf-8"))]
            except (ValueError, TypeError) as error:
                raise QueueError(f"{self._path} is damaged: remove it, and suspend again: {error}") from error
            self._seen, self._named = seen, {one.name: one for one in found}
        return self._named

    def change(self, change: Callable[[Named], R]) -> R:
        """Change what is suspended; it is on stable storage when this returns, with what `change` gives."""
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            named = dict(self.read())
            given = change(named)
            new = self._path.with_suffix(".new")
            with new.open("w", encoding="utf-8") as file:
                json.dump([asdict(one) for _, one in sorted(named.items())], file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            sync(self._path.parent)
        return given
