"""postgres_queue: the queue in a PostgreSQL database that many nodes share. Replaces qmail's queue directory.

Any node accepts, any node delivers; mail of a node that has died is taken over by the others. Needs
`pip install 'mailward[postgres]'`, and `sqlite_queue: {enabled: false}`.

Options: `database` (`postgresql://user@host/name`), `password` or `password_file`, `lease`. Events: none of
its own; the stages around it tell what enters and leaves the queue, `queue.failed` what the database refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, SecretStr

from gateway import ConfigError, Duration, Plugin, Problem, Section, hookimpl

if TYPE_CHECKING:
    from gateway.queue import Queue


class Settings(Section):
    """Where the database is, and how long a silent node counts as alive."""

    #: `postgresql://user@host/name`, with several hosts where a standby may become the primary.
    database: str
    #: For the database, unless `~/.pgpass`, a certificate or the socket's peer will do.
    password: SecretStr | None = None
    #: Others take over the mail of a node that has been silent for so long.
    lease: Duration = Field(default=12.0, ge=1.5, le=60)


class PostgresQueuePlugin(Plugin[Settings]):
    """The store of several nodes."""

    @hookimpl
    def open_queue(self) -> Queue:
        """Give the store; whoever asked opens it."""
        try:
            from .links import Database  # noqa: PLC0415 - only those who use PostgreSQL have psycopg
            from .store import PostgresQueue  # noqa: PLC0415 - as above
        except ImportError as error:
            raise ConfigError(
                Problem("postgres_queue: psycopg is missing: pip install 'mailward[postgres]'", self.place())
            ) from error
        settings, shard = self.settings, f"shard-{self.site.shard}"
        password = settings.password.get_secret_value() if settings.password else None
        database = Database(settings.database, password, f"mailward {self.site.hostname} {shard}")
        folder = self.site.state / self.stem / shard
        return PostgresQueue(
            database, folder, self.clock.time, self.site.lifetime, settings.lease, self.log.warning
        )
