"""The queue read beside its nodes, by short transactions: what a backup sees."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from gateway import FileBody, Message
from gateway.queue import Snapshot, View

from . import rows
from .links import translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .links import Database

#: Entries whose turn is looked up at a time.
_PAGE = 500
_LAST = "SELECT coalesce(max(seq), 0) FROM entry"
#: Of what comes after the start only what was born here is wanted, so that this ends however much comes in.
_NEXT = """
SELECT seq, id::text FROM entry
WHERE state = 'queued' AND seq > %s AND (seq <= %s OR parent <> '') ORDER BY seq LIMIT %s
"""
_ENTRY = f"SELECT {rows.ENTRY}, delivered FROM entry WHERE id = %s AND state = 'queued'"  # noqa: S608 - own words
_RECIPIENTS = f"SELECT {rows.RECIPIENT} FROM recipient WHERE entry = %s"  # noqa: S608 - own words


class DatabaseView(View):
    """One connection that only reads. A body is a file in a folder of our own until the next entry."""

    name = "postgres"

    def __init__(self, database: Database) -> None:
        self._stack = contextlib.ExitStack()
        with _told():
            self._connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(
                database.conninfo, autocommit=True, **database.parameters()
            )
            self._stack.callback(self._connection.close)
            self._connection.execute("SET search_path TO mailward, pg_catalog")
            self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mailward-view-")))

    def close(self) -> None:
        """Hang up."""
        self._stack.close()

    def count(self) -> int:
        """Count the entries."""
        with _told():
            row = self._connection.execute("SELECT count(*) FROM entry WHERE state = 'queued'").fetchone()
        return row[0] if row else 0

    def snapshots(self) -> Iterator[Snapshot]:
        """Give the entries in the order in which they were stored."""
        with _told():
            row = self._connection.execute(_LAST).fetchone()
        last, after = row[0] if row else 0, 0
        while page := self._page(after, last):
            for _, id_ in page:
                found = self._snapshot(id_)
                if found is not None:
                    yield found
            after = page[-1][0]

    def _page(self, after: int, last: int) -> list[tuple[Any, ...]]:
        with _told():
            return self._connection.execute(_NEXT, [after, last, _PAGE]).fetchall()

    def _snapshot(self, id_: str) -> Snapshot | None:
        with _told(), self._connection.transaction():
            row = self._connection.execute(_ENTRY.encode(), [id_], binary=True).fetchone()
            if row is None:
                return None
            found = self._connection.execute(_RECIPIENTS.encode(), [id_], binary=True).fetchall()
            body = row[9] if row[7] is None else self._body(id_, row[7])
        recipients = rows.by_entry(found).get(id_, [])
        return Snapshot(rows.entry_of(row, recipients, Message(row[8], body)), row[11], row[10])

    def _body(self, id_: str, size: int) -> FileBody:
        path = self._folder / "body"
        with path.open("wb") as file:
            query = "SELECT data FROM body WHERE entry = %s AND part = %s"
            part = 0
            while file.tell() < size:
                row = self._connection.execute(query, [id_, part], binary=True).fetchone()
                if row is None:
                    break
                file.write(row[0])
                part += 1
        return FileBody(path, size)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise the queue's own exception for one of the database's."""
    try:
        yield
    except psycopg.Error as error:
        raise translated(error) from error
