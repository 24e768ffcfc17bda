"""A gateway of four workers in processes of their own, as `mailward run` starts them."""

import contextlib
import os
import signal
import smtplib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import events_of, free_port

from gateway.console import call
from gateway.errors import ControlError

#: Root's tests run the gateway as nobody, as `mailward run` itself would.
OWNER = os.geteuid() or 65534
WORKERS = 4
CONF = """\
gateway: {{hostname: mail.example.org, state: var, workers: {workers}, postmaster: box@example.org}}
listeners:
  - {{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}
plugins: {{folders: [plugins]}}
relay_control: {{clients: [127.0.0.1]}}
rcpthosts: {{domains: [example.org]}}
virtual_domains: {{domains: {{example.org: abc}}}}
accounts: {{system: false, virtual: {{abc: {{home: home}}}}}}
remote: {{routes: {{"": "127.0.0.1:1"}}}}
"""
PATIENCE = 100.0


class Site:
    """Its folder, its process, and how to ask it."""

    def __init__(self, base, port):
        self.base = base
        self.port = port
        self.process = None
        for folder in (
            "conf.d",
            "plugins",
            "home",
            "home/Maildir/tmp",
            "home/Maildir/new",
            "home/Maildir/cur",
        ):
            (base / folder).mkdir(parents=True)
        (base / "home" / ".qmail-default").write_text("./Maildir/\n")
        self.configure()
        self.own()

    @property
    def state(self):
        return self.base / "var"

    def configure(self, more="", workers=WORKERS):
        (self.base / "conf.d" / "1.yaml").write_text(CONF.format(workers=workers, port=self.port))
        (self.base / "conf.d" / "2.yaml").write_text(more)

    def plugin(self, stem, text):
        (self.base / "plugins" / f"{stem}.py").write_text(text)

    def own(self):
        if not os.geteuid():
            for path in (self.base, *self.base.rglob("*")):
                os.chown(path, OWNER, OWNER)

    def start(self, given=None):
        """Start it, with a socket as systemd gives one; it serves when this returns."""
        command = [sys.executable, "-m", "gateway.commands", "run", "--conf", str(self.base / "conf.d")]
        if given:
            shell = f'exec 3<&{given.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
            command = ["bash", "-c", shell, "bash", *command]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            cwd=self.base,
            start_new_session=True,
            pass_fds=[given.fileno()] if given else [],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            **({} if os.geteuid() else {"user": OWNER, "group": OWNER, "extra_groups": []}),
        )
        line = self.process.stdout.readline()
        assert b"serves" in line, line

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)

    def end(self):
        """Leave nothing behind, whatever a test has left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process.stdout.close()

    def ask(self, name, **arguments):
        """Ask the gateway; while a worker is being started, again."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return list(call(self.state, name, **arguments))
            except ControlError as error:
                if "again in a moment" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def workers(self):
        return self.ask("status")[0]["workers"]

    def client(self):
        client = smtplib.SMTP("127.0.0.1", self.port, "client.example", timeout=PATIENCE)
        client.ehlo()
        return client

    def send(self, recipient="box@example.org", sender="ann@example.com", text="Subject: x\r\n\r\nx\r\n"):
        with self.client() as client:
            client.sendmail(sender, [recipient], text)

    def events(self, name=""):
        """Give events in the order of time; no stream may have a gap."""
        return [one for one in events_of(self.state) if name in ("", one["event"])]

    def streams(self, name):
        """Name the streams that have events of a name."""
        return {one["stream"] for one in self.events(name)}

    def until(self, look):
        """Wait for what other processes do; gives what was found."""
        end = time.monotonic() + PATIENCE
        while not (found := look()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.02)
        return found


@contextlib.contextmanager
def made():
    # Not pytest's folder: nobody may not enter that one, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="mailward-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        site = Site(Path(folder), free_port())
        try:
            yield site
        finally:
            if site.process:
                site.end()


@pytest.fixture
def site():
    """Give a site that is configured and not yet started."""
    with made() as site:
        yield site


@pytest.fixture(scope="module")
def running():
    """Give one running gateway for the tests of a file: a start takes seconds."""
    with made() as site:
        site.start()
        yield site
