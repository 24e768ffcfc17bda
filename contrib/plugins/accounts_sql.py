"""accounts_sql: accounts from a database, SQLite or PostgreSQL, in place of `accounts`. See accounts_sql.md.

A table, or a view, of this shape says who controls a local part:

    CREATE TABLE accounts (
        name text PRIMARY KEY,   -- in lower case, as virtual_domains has it: "abc"
        uid integer NOT NULL,    -- never 0
        gid integer NOT NULL,
        home text NOT NULL       -- an absolute path; its `.qmail` files say where mail goes
    );

`abc` has the local parts `abc` and `abc-...`; the longest name wins. It is asked before `accounts`, which is
left with what the database does not know: its alias and the postmaster, unless it is switched off.

Options: `database` (the path of a SQLite file, or `postgresql://user@host/name`), `password` or
`password_file`, `timeout`. Events: none of its own. While the database gives no answer nobody can tell who an
account is: `plugin.failed`, a 4xx reply at RCPT, and mail waits.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr

from gateway import Account, Duration, GatewayError, Plugin, Section, hookimpl, lower

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import AsyncConnection

    from gateway import Context

    Row = Sequence[Any]

#: The longest name wins; one question answers for all.
QUERY = "SELECT name, uid, gid, home FROM accounts WHERE name IN ({}) ORDER BY length(name) DESC LIMIT 1"
#: Names that are looked up for one local part.
MOST = 50
#: SQLite looks at the clock after so many steps.
STEPS = 1000


class Settings(Section):
    """Where the table is."""

    #: The path of a SQLite file, or `postgresql://user@host/name`.
    database: str
    #: For PostgreSQL, unless `~/.pgpass` or the socket's peer will do.
    password: SecretStr | None = None
    #: How long an answer may take.
    timeout: Duration = Field(default=5.0, gt=0)


class AccountsSql(Plugin[Settings]):
    """Looks accounts up, without side effects; raises when nobody can tell."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._connection: AsyncConnection[Row] | None = None
        self._lock = asyncio.Lock()

    @hookimpl
    async def account(self, local_part: str) -> Account | None:
        """Give the account with the longest name that has this local part."""
        names = candidates(local_part)
        if not names:
            return None
        if self.settings.database.startswith(("postgresql://", "postgres://")):
            async with asyncio.timeout(self.settings.timeout), self._lock:
                row = await self._ask_postgres(names)
        else:
            row = await asyncio.to_thread(self._ask_sqlite, names)
        return None if row is None else to_account(row, local_part)

    @hookimpl
    async def shutdown(self) -> None:
        """Leave the database."""
        await self._hang_up()

    def _ask_sqlite(self, names: list[str]) -> Row | None:
        """Ask a file that is only read, for a bounded time."""
        url = (self.site.base / self.settings.database).absolute().as_uri()
        deadline = time.monotonic() + self.settings.timeout
        with closing(sqlite3.connect(f"{url}?mode=ro", self.settings.timeout, uri=True)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
            query = QUERY.format(", ".join("?" * len(names)))
            found: Row | None = connection.execute(query, names).fetchone()
            return found

    async def _ask_postgres(self, names: list[str]) -> Row | None:
        """Ask by a connection that is kept; one that was lost meanwhile is made anew, once."""
        from psycopg import OperationalError  # noqa: PLC0415 - only those who ask PostgreSQL have it

        kept = self._connection is not None
        try:
            return await self._ask_connection(names)
        except OperationalError:
            await self._hang_up()
            if not kept:
                raise
            return await self._ask_connection(names)
        except BaseException:
            await self._hang_up()
            raise

    async def _ask_connection(self, names: list[str]) -> Row | None:
        if self._connection is None:
            self._connection = await self._connect()
        cursor = await self._connection.execute(QUERY.format(", ".join(["%s"] * len(names))), names)
        return await cursor.fetchone()

    async def _connect(self) -> AsyncConnection[Row]:
        from psycopg import AsyncConnection  # noqa: PLC0415 - as above

        password = self.settings.password
        return await AsyncConnection.connect(
            self.settings.database,
            autocommit=True,
            options=f"-c statement_timeout={int(self.settings.timeout * 1000)}",
            password=password.get_secret_value() if password else None,
        )

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def candidates(local_part: str) -> list[str]:
    """Give every name that may have a local part; bytes that no database takes are in none."""
    local = lower(local_part)
    ends = [at for at, c in enumerate(local) if c == "-" and at][: MOST - 1]
    return [name for name in (local, *(local[:at] for at in ends)) if name and name.isprintable()]


def to_account(row: Row, local_part: str) -> Account:
    """Make an account of a row. Raises GatewayError for one that nothing may be delivered to."""
    name, uid, gid, home = row
    if not (isinstance(uid, int) and isinstance(gid, int) and uid > 0 and gid >= 0):
        raise GatewayError(f"accounts: {name}: uid {uid} and gid {gid} will not do")
    if not (isinstance(home, str) and home.startswith("/")):
        raise GatewayError(f"accounts: {name}: home {home!r} is no absolute path")
    dash = "-" if len(local_part) > len(name) else ""
    return Account(name, uid, gid, home, dash, local_part[len(name) + 1 :], f"accounts_sql: {name}")
