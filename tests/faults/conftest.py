"""Gateways to be killed, stores for them, and the table of what the long proofs counted."""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from postgres_server import SECRET

from gateway.envelope import new_id
from gateway.faultpoint import VARIABLE

sys.path.insert(0, str(Path(__file__).parent))

from killable import Gateway, rights

#: The name of a row of numbers in a report.
TABLE = "numbers"


@pytest.fixture
async def gateway():
    """Give a site that is configured and not yet started."""
    # Not pytest's folder: nobody may not enter that one, and a socket's path must be short.
    base = Path(tempfile.mkdtemp(prefix="mailward-"))
    made = Gateway(base)
    made.configure()
    made.own()
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.kill()
    shutil.rmtree(base)


@pytest.fixture
def zygote():
    """Give the process that forks gateways."""
    from sites import Zygote

    root = Path(__file__).parents[2]
    made = Zygote(rights(), {VARIABLE: "none", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"})
    yield made
    made.close()


@pytest.fixture
def numbers(record_property):
    """Give `numbers(name, **counts)`: a row of the table at the end of the run."""
    return lambda name, **counts: record_property(TABLE, (name, counts))


def pytest_terminal_summary(terminalreporter):
    """Show what the long proofs counted."""
    rows = [
        value
        for report in terminalreporter.stats.get("passed", ())
        for name, value in report.user_properties
        if name == TABLE
    ]
    if not rows:
        return
    terminalreporter.section("numbers")
    for name, counts in rows:
        terminalreporter.line(f"{name:32} " + "  ".join(f"{key} {count}" for key, count in counts.items()))


@pytest.fixture
def settings(request):
    """Give `settings(store)`: while it lasts there is a new store, and it gives what a site sets for it."""

    @contextlib.contextmanager
    def make(store):
        if store == "sqlite":
            yield ""
            return
        server, name = request.getfixturevalue("postgres_server"), f"steps_{new_id().replace('-', '')}"
        server.execute(f"CREATE DATABASE {name}")
        yield (
            "sqlite_queue: {enabled: false}\n"
            f"postgres_queue: {{database: '{server.url_of(name)}', password: '{SECRET}'}}\n"
        )
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    return make
