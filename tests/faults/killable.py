"""A real gateway in a process of its own, which a test may kill and start again on the same state."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from processes import events_of, free_port

from gateway.console import call

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
        return rights()

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


def rights():
    """Say who a process is to be."""
    return {} if os.geteuid() else {"user": OWNER, "group": OWNER, "extra_groups": []}


def _become(user=None, group=None, extra_groups=()):
    if user is not None:
        os.setgroups(extra_groups)
        os.setgid(group)
        os.setuid(user)


def _environment():
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
