"""A site in a temporary folder, the commands as a person calls them, and a gateway that runs beside them."""

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.commands import assembly, check
from gateway.commands.group import mailward
from gateway.console import Console
from gateway.listeners import open_sockets
from gateway.worker import Configuration, Worker
from gateway.workers.calls import Calls

#: Whose the homes are: as root somebody's who is not the gateway's user.
OWNER = os.geteuid() or 61003
CONF = {
    "10-gateway.yaml": """\
gateway: {hostname: mail.example.org, state: var, user: nobody, postmaster: info@example.org}
listeners:
  - {name: mx, protocol: smtp, address: "127.0.0.1:0"}
""",
    "20-relay.yaml": """\
relay_control: {clients: [127.0.0.1]}
rcpthosts: {domains: [example.org, example.net]}
""",
    "30-domains.yaml": """\
virtual_domains:
  domains:
    example.org: abc
    example.net: xyz
accounts:
  virtual:
    abc: {home: home/abc}
    xyz: {home: home/xyz}
""",
    "40-remote.yaml": """\
remote: {routes: {"": "127.0.0.1:1"}}
""",
}


@dataclass
class Site:
    """A site's folder; `mailward` runs a command on it."""

    base: Path

    @property
    def conf(self):
        return self.base / "conf.d"

    def write(self, name, text):
        (self.conf / name).write_text(text)

    def home(self, name, **files):
        home = self.base / "home" / name
        home.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (home / f".qmail-{file}").write_text(text)
        for part in ("tmp", "new", "cur"):
            (home / "Maildir" / part).mkdir(parents=True, exist_ok=True)
        for path in (home, *home.rglob("*")):
            os.chown(path, OWNER, -1 if os.geteuid() else OWNER)
        return home

    def mailward(self, *arguments, code=0):
        """Run a command; its output, once the exit code is as expected."""
        result = CliRunner().invoke(mailward, [*arguments, "--conf", str(self.conf)])
        assert result.exit_code == code, (result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output


@pytest.fixture(autouse=True)
def stay_who_we_are(monkeypatch):
    """Leaving root is for good; what it does has a test of its own."""
    monkeypatch.setattr(assembly, "leave_root", lambda _: None)
    monkeypatch.setattr(assembly, "apart", lambda work: work())
    # Whether a machine has it, and who is in it, is another test's.
    monkeypatch.setattr(check, "GROUP", "mwtest-no-such-group")


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.conf.mkdir()
    for name, text in CONF.items():
        made.write(name, text)
    made.home("abc", default="./Maildir/\n", info="# lists\n&ann@example.net\n")
    made.home("xyz", default="./Maildir/\n")
    return made


@pytest.fixture
def gateway(site):
    """Give `with gateway() as port:` the site's gateway in a thread."""
    return lambda: _running(site.conf)


@pytest.fixture
def running(gateway):
    """Give `running()`: it starts the gateway for the rest of the test, and gives its port."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(gateway())


@contextlib.contextmanager
def _running(conf):
    configuration = Configuration.load(conf)
    sockets = open_sockets(configuration.settings.listeners)
    port = next(iter(sockets.values()))[0].getsockname()[1]
    started, loops, failures = threading.Event(), [], []

    async def serve():
        worker = Worker(configuration, sockets)
        control, ended = Console(Calls(worker).find), asyncio.Event()
        loops.append((asyncio.get_running_loop(), ended))
        try:
            await worker.start()
            await control.start(configuration.settings.gateway.state)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            started.set()
        await ended.wait()
        await control.stop()
        await worker.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    assert not failures
    try:
        yield port
    finally:
        loop, ended = loops[0]
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
