"""The files of one stream: `STREAM/00000000000000000001.jsonl`, named by the first sequence in them.

Written at the end only, and cut back when a write fails, so that a reader sees whole lines or the torn last
one. A segment whose fsync failed is never written again: what the kernel then still holds is unknown.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import orjson

from gateway.errors import JournalError
from gateway.faultpoint import point

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".jsonl"
#: A segment is closed at this age, so that `keep` is true to the day.
SPAN = 86400.0


def segments(folder: Path) -> list[Path]:
    """Give a stream's segments, oldest first."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())


def ended(folder: Path) -> float:
    """Give when the last event of a stream was emitted, 0.0 when there is none."""
    found = segments(folder)
    return _end(found[-1])[1] if found else 0.0


def positions(folder: Path) -> dict[str, int]:
    """Give the sequence of the last event of each stream of a journal."""
    found = {path.name: segments(path) for path in folder.glob("*/")}
    return {name: _end(paths[-1])[0] for name, paths in found.items() if paths}


class Segments:
    """Appends lines to the newest segment, starts another when it is big or old, forgets the oldest."""

    def __init__(self, folder: Path, *, size: int, keep: float, max_size: int) -> None:
        self._folder = folder
        self._size = size
        self._keep = keep
        self._max_size = max_size
        self._lock = -1
        self._file = -1
        self._path = folder
        self._length = 0
        self._born = 0.0

    def open(self, now: float) -> tuple[int, float]:
        """Take the stream's lock, cut a torn last line. Raises JournalError.

        Gives the next sequence, and when the last event was emitted (0.0 when there is none).
        """
        try:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a full disk; it is only for people
                os.ftruncate(self._lock, 0)
                os.write(self._lock, f"{os.getpid()}\n".encode())
            found = segments(self._folder)
            if not found:
                return 1, 0.0
            sequence, when, length = _end(found[-1])
            os.truncate(found[-1], length)
            point("journal.open")
            self._continue(found[-1], length, now)
        except BlockingIOError:
            owner = os.read(self._lock, 20).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise JournalError(
                f"gateway.state: another gateway (pid {owner}) uses {self._folder.parents[1]}: "
                f"stop it, or give this one a state of its own"
            ) from None
        except OSError as error:
            self.close()
            raise JournalError(f"{self._folder}: {error.strerror}") from error
        return sequence + 1, when

    def append(self, lines: bytes, first: int, now: float) -> int:
        """Write lines that begin with sequence `first`, and put them on stable storage: all or nothing.

        Gives how many old events were forgotten before their time. Raises OSError.
        """
        fresh = self._file < 0 or self._length >= self._size or now - self._born > SPAN
        if fresh:
            self._start(first, now)
        try:
            point("journal.write")
            view = memoryview(lines)
            while view:
                view = view[os.write(self._file, view) :]
            point("journal.sync")
            os.fdatasync(self._file)
            point("journal.synced")
        except OSError:
            self._abandon()
            raise
        self._length += len(lines)
        return self._prune(now) if fresh else 0

    def close(self) -> None:
        """Give the files and the lock back."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _prune(self, now: float) -> int:
        """Forget closed segments of all streams, oldest first, that are too old or over the size.

        Gives the events lost by size. The newest of each stream stays, for the sequence to go on from.
        """
        found = [segments(folder) for folder in self._folder.parent.iterdir() if folder.is_dir()]
        sizes = {path: _size_and_time(path) for stream in found for path in stream}
        total = sum(size for size, _ in sizes.values())
        closed = [pair for stream in found for pair in pairwise(stream)]
        lost = 0
        for path, following in sorted(closed, key=lambda pair: sizes[pair[0]][1]):
            size, written = sizes[path]
            expired = written < now - self._keep
            if not expired and total <= self._max_size:
                break
            total -= size
            with contextlib.suppress(FileNotFoundError):  # another stream's writer was faster, and counts it
                path.unlink()
                lost += 0 if expired else int(following.stem) - int(path.stem)
        return lost

    def _start(self, first: int, now: float) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._continue(self._folder / f"{first:020d}{SUFFIX}", 0, now)
        point("journal.segment")
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _continue(self, path: Path, length: int, now: float) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._path, self._length, self._born = path, length, now

    def _abandon(self) -> None:
        """Take back what a failed append left; the next one starts a new segment."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._length)
        os.close(self._file)
        self._file = -1


def _size_and_time(path: Path) -> tuple[int, float]:
    """Give what a segment takes, and when it was written last; nothing when it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0.0
    return status.st_size, status.st_mtime


def _end(path: Path) -> tuple[int, float, int]:
    """Find the last whole line: its sequence (one before the first, if there is none), time and end."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = orjson.loads(data[start:end])
            return int(record["sequence"]), datetime.fromisoformat(record["time"]).timestamp(), end
        end = start
    return int(path.stem) - 1, 0.0, 0
