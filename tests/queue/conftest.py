"""Stores over memory, SQLite and PostgreSQL, and entries to put into them."""

import importlib.util
import sys
from pathlib import Path

import pytest
from postgres_server import SECRET

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import Message
from gateway.queue import MemoryQueue
from gateway.testing.fakes import FakeClock

PLUGINS = Path(__file__).parents[2] / "plugins"


def _module(stem):
    folder = PLUGINS / stem
    name = f"queue_tests_{stem}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sqlite_queue():
    """Give the module of the plugin sqlite_queue."""
    return _module("sqlite_queue")


@pytest.fixture(scope="session")
def postgres_store(postgres_server):
    """Give `make(folder, clock, **more)`: a node of an empty database."""
    _module("postgres_queue")
    links = importlib.import_module("queue_tests_postgres_queue.links")
    store = importlib.import_module("queue_tests_postgres_queue.store")
    postgres_server.execute("CREATE DATABASE contract")

    def make(folder, now, lifetime=7 * 86400.0, lease=12.0, port=None, empty=True):
        if empty:
            tables = postgres_server.execute(
                "SELECT string_agg(format('mailward.%I', tablename), ', ') FROM pg_tables "
                "WHERE schemaname = 'mailward' AND tablename <> 'migration'",
                database="contract",
            )
            if tables[0][0]:
                postgres_server.execute(f"TRUNCATE {tables[0][0]}", database="contract")
        database = links.Database(postgres_server.url_of("contract", port=port), SECRET, "test")
        return store.PostgresQueue(database, folder, now, lifetime, lease)

    yield make
    postgres_server.execute("DROP DATABASE contract WITH (FORCE)")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request, tmp_path, clock, sqlite_queue):
    """Give an open store of each kind."""
    if request.param == "memory":
        made = MemoryQueue(clock.time)
    elif request.param == "sqlite":
        made = sqlite_queue.SqliteQueue(tmp_path / "q", clock.time)
    else:
        made = request.getfixturevalue("postgres_store")(tmp_path / "q", clock.time)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def entry(clock):
    """Give `entry(*recipients, sender=..., **fields)`: an entry that was never stored."""

    def make(*recipients, sender="s@remote.example", body=b"\nbody\n", due=0.0, state="queued", **more):
        found = [
            EntryRecipient(number, Recipient.of(Address(one)), state, due=due)
            for number, one in enumerate(recipients or ["r@local.example"])
        ]
        message = Message(b"Subject: t\n", body)
        fields = {
            "id": new_id(),
            "sender": Address(sender),
            "birth": clock.time(),
            "size": message.size,
            **more,
        }
        return Entry(message=message, recipients=found, **fields)

    return make
