"""Reads the journal back, also while it is written."""

from __future__ import annotations

import heapq
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from gateway.journal.segments import segments

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


def read(folder: Path, *, since: float = 0.0, having: str = "") -> Iterator[dict[str, Any]]:
    """Give the events of all streams in the order of time.

    `since`: seconds since the epoch. `having`: only events in whose JSON this text stands (an id, an
    address); a cheap first sieve, so that finding one message in a big journal does not parse all of it.
    """
    first = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    streams = [path for path in sorted(folder.glob("*")) if path.is_dir()]
    found = [_stream(stream, since, having) for stream in streams]
    return (one for one in heapq.merge(*found, key=lambda one: one["time"]) if one["time"] >= first)


def accepted(folder: Path, since: float, name: str = "message.accepted") -> set[str]:
    """Give the ids of all messages that have an event of this name since then."""
    return {one["message"] for one in read(folder, since=since, having=name) if one["event"] == name}


def newest(folder: Path, severities: Collection[str], within: int = 1024 * 1024) -> dict[str, Any] | None:
    """Give the newest event of these severities that stands in the last `within` bytes of any stream."""
    found: list[dict[str, Any]] = []
    for stream in folder.glob("*/"):
        for path in segments(stream)[-1:]:
            with path.open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - within, 0))
                events = [one for line in file for one in _parse(line)]
            found += [one for one in events if one.get("severity") in severities][-1:]
    return max(found, key=lambda one: one["time"], default=None)


def _stream(folder: Path, since: float, having: str) -> Iterator[dict[str, Any]]:
    sieve = orjson.dumps(having)[1:-1]
    for path in segments(folder):
        try:
            if path.stat().st_mtime < since:
                continue
            file = path.open("rb")
        except FileNotFoundError:  # pruned since we looked
            continue
        with file:
            for line in file:
                if line.endswith(b"\n") and sieve in line:
                    yield from _parse(line)


def _parse(line: bytes) -> Iterator[dict[str, Any]]:
    """Give the event, or nothing: a crash may leave a line that is none, and reading must go on."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return
    if isinstance(record, dict) and {"time", "event", "id"} <= record.keys():
        yield record
