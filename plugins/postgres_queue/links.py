"""Connections to the database: bounded calls, reconnecting with back-off, and what a server must promise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors

from gateway.queue import QueueError, QueueFull

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]
    R = TypeVar("R")

#: Seconds that one call may take before its connection is given up.
ANSWER = 10.0
#: Seconds between two tries to connect: the first, and the longest.
_FIRST, _LONGEST = 0.25, 4.0
#: A backend whose worker has vanished in mid-transaction must let its locks go before others may take over.
_SESSION = """
SET search_path TO mailward, pg_catalog;
SET idle_in_transaction_session_timeout TO '5s';
SET lock_timeout TO '8s';
SET client_connection_check_interval TO '5s'
"""
_PROMISES = "SELECT current_setting('fsync'), current_setting('synchronous_commit'), pg_is_in_recovery()"
#: Settings of synchronous_commit under which COMMIT is answered only when the standby, too, is safe.
_FULL = ("on", "remote_apply")


class ConnectionLost(QueueError):
    """The database did not answer COMMIT: what was asked has happened, or not."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where the database is."""

    conninfo: str
    password: str | None
    name: str

    def parameters(self) -> dict[str, Any]:
        """Give what libpq is to know beside the connection string, which may say otherwise."""
        given = psycopg.conninfo.conninfo_to_dict(self.conninfo)
        wanted: dict[str, Any] = {
            "application_name": self.name,
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": int(ANSWER * 1000),
            "target_session_attrs": "read-write",
        }
        found = {key: value for key, value in wanted.items() if key not in given}
        return found if self.password is None else {**found, "password": self.password}

    async def connect(self) -> Connection:
        """Connect, and hold the server to its promises. Raises psycopg.Error, QueueError."""
        async with asyncio.timeout(ANSWER / 2):
            connection = await psycopg.AsyncConnection.connect(
                self.conninfo, autocommit=True, **self.parameters()
            )
        try:
            await connection.execute(_SESSION)
            row = await (await connection.execute(_PROMISES)).fetchone()
            await _demand(connection, row or ("", "", True))
        except BaseException:
            await connection.close()
            raise
        return connection


async def _demand(connection: Connection, promises: tuple[Any, ...]) -> None:
    """Refuse a server that would forget; ask this session for full synchronous commits."""
    fsync, synchronous, standby = promises
    if fsync != "on":
        raise QueueError(
            "the queue's database runs with fsync = off: after a crash mail that had its 250 would be lost. "
            "Set `fsync = on` in postgresql.conf and restart it"
        )
    if standby:
        raise QueueError("the queue's database is a standby, which takes no mail: name the primary")
    if synchronous not in _FULL:
        await connection.execute("SET synchronous_commit TO 'on'")


class Link:
    """One connection, made when it is first needed and made again when it was lost; one call at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._pause = 0.0
        self._again = 0.0

    async def run(self, work: Callable[[Connection], Awaitable[R]], *, pipelined: bool = False) -> R:
        """Do some work in one transaction. A caller that is cancelled does not stop it.

        Raises ConnectionLost when nobody knows whether it happened, QueueError when it did not.
        """
        task = asyncio.ensure_future(self._run(work, pipelined))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Hang up."""
        async with self._lock:
            await self._drop()

    @contextlib.asynccontextmanager
    async def connection(self) -> Any:
        """Give the connection itself, to listen on it; errors are translated as by `run`."""
        async with self._lock:
            connection = await self._connected()
            try:
                yield connection
            except psycopg.Error as error:
                if connection.broken or connection.closed:
                    await self._drop()
                raise translated(error) from error

    async def _run(self, work: Callable[[Connection], Awaitable[R]], pipelined: bool) -> R:
        async with self._lock:
            connection = await self._connected()
            timer = asyncio.get_running_loop().call_later(ANSWER, _cut, connection)
            done = False
            try:
                piped = connection.pipeline() if pipelined else contextlib.nullcontext()
                async with piped, connection.transaction():
                    result = await work(connection)
                    done = True
            except psycopg.Error as error:
                lost = connection.broken or connection.closed
                if lost:
                    await self._drop()
                raise translated(error, lost=lost and done) from error
            finally:
                timer.cancel()
            return result

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if time.monotonic() < self._again:
            raise QueueError("the queue's database is not there")
        try:
            self._connection = await self._database.connect()
        except (psycopg.Error, OSError, QueueError) as error:
            self._pause = min(_LONGEST, 2 * self._pause or _FIRST)
            self._again = time.monotonic() + self._pause
            raise translated(error, lost=False) from error
        self._pause = 0.0
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()


def _cut(connection: Connection) -> None:
    """Make a call that waits for ever hear the end of its connection at once."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as one,
    ):
        one.shutdown(socket.SHUT_RDWR)


def translated(error: Exception, *, lost: bool = False) -> Exception:
    """Give the queue's own exception for one of the database's."""
    if isinstance(error, QueueError):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    if lost:
        return ConnectionLost(f"the queue's database was lost: {text}")
    if isinstance(error, errors.DiskFull):
        return QueueFull("no room is left for the queue")
    if isinstance(error, errors.InsufficientPrivilege):
        return QueueError(
            f"the queue's database: {text}. Its role must own the schema: "
            "CREATE SCHEMA mailward AUTHORIZATION that_role"
        )
    if isinstance(error, (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)):
        return QueueError(f"the queue's database has no whole schema `mailward`: {text}")
    return QueueError(f"the queue's database: {text}")
