"""A real gateway in a process of its own, which a test may kill and start again on the same state."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from postgres_server import SECRET
from processes import events_of, free_port

from gateway.console import call
from gateway.envelope import new_id
from gateway.faultpoint import VARIABLE

sys.path.insert(0, str(Path(__file__).parent))

#: The name of a row of numbers in a report.
TABLE = "numbers"
#: Root's tests run the gateway as nobody, as `mailward run` itself would.
OWNER = os.geteuid() or 65534
CONF = """\
gateway: {{hostname: mail.example.org, state: var, postmaster: box@example.org}}
listeners:
  - {{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}
limits: {{sessions_per_client: 200}}
relay_control: {{clients: [127.0.0.1]}}
rcpthosts: {{domains: [example.org]}}
virtual_domains: {{domains: {{example.org: abc}}}}
accounts: {{system: false, virtual: {{abc: {{home: home}}}}}}
remote: {{routes: {{"": "127.0.0.1:{sink}"}}}}
"""


class Gateway:
    """One site: its folder, its process, and what became of its mail."""

    def __init__(self, base):
        self.base = base
        self.port = free_port()
        self.process = None
        (base / "conf.d").mkdir()
        self.home(default="./Maildir/\n")

    @property
    def state(self):
        return self.base / "var"

    @property
    def maildir(self):
        return self.base / "home" / "Maildir"

    def configure(self, sink=1, more=""):
        (self.base / "conf.d" / "site.yaml").write_text(CONF.format(port=self.port, sink=sink) + more)

    def home(self, **files):
        for part in ("tmp", "new", "cur"):
            (self.maildir / part).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.base / "home" / f".qmail-{name}").write_text(text)
        self.own()

    def own(self):
        """Give all that is here to the gateway's user."""
        if not os.geteuid():
            for path in (self.base, *self.base.rglob("*")):
                os.chown(path, OWNER, OWNER)

    def command(self, *words):
        return [sys.executable, "-m", "gateway.commands", *words, "--conf", str(self.base / "conf.d")]

    def rights(self):
        """Say who the process is to be."""
        return {} if os.geteuid() else {"user": OWNER, "group": OWNER, "extra_groups": []}

    async def start(self):
        """Start the process; it serves when this returns."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command("run"),
            stdout=asyncio.subprocess.PIPE,
            cwd=self.base,
            env=_environment(),
            start_new_session=True,
            preexec_fn=lambda: _become(**self.rights()),  # uvloop takes no `user` and `group`
        )
        line = await asyncio.wait_for(self.process.stdout.readline(), 20)
        assert b"serves" in line, f"it did not start: {line!r}"

    async def kill(self):
        """End it, workers and all, as a power cut ends it for everybody else."""
        os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def stop(self):
        """End it gently; gives the exit code."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 40)

    def refused(self):
        """Run it where it should not start; gives exit code and what it said."""
        ended = subprocess.run(
            self.command("run"),
            check=False,
            capture_output=True,
            text=True,
            cwd=self.base,
            env=_environment(),
            timeout=20,
            **self.rights(),
        )
        return ended.returncode, ended.stdout + ended.stderr

    def typed(self, line, *, root=False):
        """Run a line in a shell, as a person types it; gives exit code and what it said."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ended = subprocess.run(
            line,
            shell=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={**_environment(), "PATH": path},
            timeout=20,
            **({} if root else self.rights()),
        )
        return ended.returncode, ended.stdout

    def ask(self, name, **arguments):
        return list(call(self.state, name, **arguments))

    async def empty(self, seconds=30):
        """Wait until nothing is in the queue."""
        async with asyncio.timeout(seconds):
            while await asyncio.to_thread(self.ask, "queue.stats"):  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)

    def events(self):
        """Give all events of the journal in the order of time; no stream of it may have a gap."""
        return events_of(self.state)

    def delivered(self):
        """Give the content of every file in the Maildir."""
        return [path.read_bytes() for path in (self.maildir / "new").iterdir()]


def _become(user=None, group=None, extra_groups=()):
    if user is not None:
        os.setgroups(extra_groups)
        os.setgid(group)
        os.setuid(user)


def _environment():
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


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
    rights = {} if os.geteuid() else {"user": OWNER, "group": OWNER, "extra_groups": []}
    made = Zygote(rights, {VARIABLE: "none", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"})
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
