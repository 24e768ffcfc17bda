"""The schema `mailward`, and how it is brought up to date: numbered files, each once, all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway import point
from gateway.queue import QueueError

if TYPE_CHECKING:
    from .links import Connection

#: Of the advisory lock under which one node migrates while the others wait; any number that nobody else uses.
_LOCK = 0x6D61696C77617264
_MADE = "SELECT count(*) FROM pg_tables WHERE schemaname = 'mailward' AND tablename = 'migration'"


def migrations() -> dict[int, str]:
    """Give every migration by its number."""
    files = sorted(Path(__file__).with_name("migrations").glob("[0-9]*.sql"))
    return {int(path.name.partition("_")[0]): path.read_text("utf-8") for path in files}


async def migrate(connection: Connection) -> None:
    """Bring the schema up to date, within the caller's transaction. Raises QueueError when it is newer."""
    known = migrations()
    newest = max(known)
    if (version := await _version(connection)) < newest:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        version = await _version(connection)
    if version > newest:
        raise QueueError(
            f"the queue's database was made by a newer version (schema {version}); this one knows {newest}"
        )
    if not version:
        await connection.execute("CREATE SCHEMA IF NOT EXISTS mailward")
        await connection.execute(
            "CREATE TABLE mailward.migration (number integer PRIMARY KEY, at timestamptz DEFAULT now())"
        )
    for number in range(version + 1, newest + 1):
        await connection.execute(known[number].encode())
        await connection.execute("INSERT INTO mailward.migration VALUES (%s)", [number])
        point("queue.create")


async def _version(connection: Connection) -> int:
    row = await (await connection.execute(_MADE)).fetchone()
    if row is None or not row[0]:
        return 0
    row = await (await connection.execute("SELECT max(number) FROM mailward.migration")).fetchone()
    return (row and row[0]) or 0
