"""Stores over memory and SQLite, and entries to put into them."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import Message
from gateway.queue import MemoryQueue
from gateway.testing.fakes import FakeClock

PLUGIN = Path(__file__).parents[2] / "plugins" / "sqlite_queue"


@pytest.fixture(scope="session")
def sqlite_queue():
    """Give the module of the plugin sqlite_queue."""
    place = [str(PLUGIN)]
    spec = importlib.util.spec_from_file_location(
        "queue_tests_sqlite", PLUGIN / "__init__.py", submodule_search_locations=place
    )
    module = sys.modules["queue_tests_sqlite"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path, clock, sqlite_queue):
    """Give an open store of each kind."""
    made = (
        MemoryQueue(clock.time)
        if request.param == "memory"
        else sqlite_queue.SqliteQueue(tmp_path / "q", clock.time)
    )
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
