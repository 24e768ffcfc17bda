"""Threads that read beside the writer: one for deliveries, one for people, one that checks a large file."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import apsw

from . import disk
from .filtering import teach
from .shard import Shard
from .writer import translated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

R = TypeVar("R")


class Reader:
    """A connection of its own, and the thread that it is used in."""

    def __init__(self, path: Path, bodies: Path) -> None:
        self._shard = Shard(disk.read_only(path), bodies)
        teach(self._shard.connection)
        self._thread = ThreadPoolExecutor(1, "sqlite_queue_reader")

    async def run(self, call: Callable[[Shard], R]) -> R:
        """Run a call on the shard. Raises QueueError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, self._shard)
        except Exception as error:
            raise translated(error) from error

    def close(self) -> None:
        """Let go of the file; a call that takes long is ended."""
        self._shard.connection.interrupt()
        self._thread.shutdown()
        self._shard.connection.close()


def fault(shard: Shard) -> str:
    """Read the whole file and say what is wrong with it; "" when nothing is, or when there was no time."""
    try:
        return disk.fault(shard.connection)
    except apsw.InterruptError:
        return ""
