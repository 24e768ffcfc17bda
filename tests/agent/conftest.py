"""A gateway that was started by root, with three system users of its own, made and removed by these tests."""

import contextlib
import grp
import itertools
import json
import os
import pwd
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trustme
from processes import free_port

from gateway.console import GROUP, call
from gateway.journal import read

PATIENCE = 40.0
DOT_QMAIL = Path(__file__).parents[2] / "plugins" / "dot_qmail" / "__init__.py"
GATEWAY, ANN, JOE = USERS = tuple(f"mwtest-{name}-{os.getpid()}" for name in ("gw", "ann", "joe"))
CONF = """\
gateway: {{hostname: mail.example.org, state: {state}, workers: 1, user: {user}, postmaster: ann@example.org}}
listeners: [{{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}]
tls: {{certificates: [{{certificate: mx.pem, key: mx.pem}}]}}
relay_control: {{clients: [127.0.0.1]}}
locals: {{domains: [example.org]}}
accounts:
  {{system: true, assign: assign, virtual: {{abc: {{home: homes/abc, uid: 61001, gid: 61001}}}}}}
remote: {{routes: {{"": "127.0.0.1:1"}}}}
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(needs_root)
            # One gateway serves all of them.
            item.add_marker(pytest.mark.xdist_group("agent"))


@pytest.fixture(scope="session")
def users():
    """Make the users; gives name -> their entry in passwd."""
    made = GROUP not in (one.gr_name for one in grp.getgrall())
    try:
        subprocess.run(["groupadd", "--force", GROUP], check=True)
        for name in USERS:
            home = ["--no-create-home"] if name == GATEWAY else ["--create-home", "--key", "HOME_MODE=0700"]
            group = ["--groups", GROUP] if name == GATEWAY else []
            subprocess.run(["useradd", *home, *group, "--user-group", name], check=True)
        yield {name: pwd.getpwnam(name) for name in USERS}
    finally:
        for name in USERS:
            subprocess.run(["userdel", "--force", "--remove", name], check=False, capture_output=True)
        # Tests that run beside these have members in it.
        if made and not grp.getgrnam(GROUP).gr_mem:
            subprocess.run(["groupdel", GROUP], check=False)


class Site:
    """A folder, a gateway in it, and how to ask it."""

    def __init__(self, base, users):
        self.base = base
        self.users = users
        self.gateway, self.ann, self.joe = USERS
        self.port = free_port()
        self.home = {name: Path(one.pw_dir) for name, one in users.items()}
        self.home["abc"] = base / "homes" / "abc"
        self.home["abc"].mkdir(parents=True)
        (base / "conf.d").mkdir()
        (base / "assign").write_text(".\n")
        made = trustme.CA().issue_cert("mail.example.org")
        (base / "mx.pem").touch(mode=0o600)
        made.private_key_and_cert_chain_pem.write_to_path(base / "mx.pem")
        os.chown(self.home["abc"], 61001, 61001)
        self.names = itertools.count()
        self.configure()

    @property
    def state(self):
        return self.base / "state"

    def configure(self, more="", **changes):
        given = {"state": self.state, "user": GATEWAY, "port": self.port, **changes}
        (self.base / "conf.d" / "1.yaml").write_text(CONF.format(**given))
        (self.base / "conf.d" / "2.yaml").write_text(more)

    def start(self):
        command = [Path(sys.executable).with_name("mailward"), "run", "--conf", self.base / "conf.d"]
        self.log = (self.base / "stderr").open("wb")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "SECRET_OF_ROOT": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        line = self.process.stdout.readline()
        assert b"serves" in line, (self.base / "stderr").read_text()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.log.close()
        return code

    def qmail(self, name, text, file=".qmail"):
        """Write an account's file, as the account's own."""
        path = self.home[name] / file
        path.write_text(text)
        status = self.home[name].stat()
        os.chown(path, status.st_uid, status.st_gid)

    def maildir(self, name):
        """Give an account a Maildir; gives where new mail in it is."""
        for folder in ("tmp", "new", "cur"):
            path = self.home[name] / "Maildir" / folder
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.home[name].stat()
            for one in (path.parent, path):
                os.chown(one, status.st_uid, status.st_gid)
        return self.home[name] / "Maildir" / "new"

    def send(self, to, text="hello\r\n", sender="sender@example.com"):
        """Send a message; gives its subject, by which it is found again."""
        subject = f"number {next(self.names)}"
        with smtplib.SMTP("127.0.0.1", self.port, "client.example", timeout=PATIENCE) as client:
            client.sendmail(sender, [f"{to}@example.org"], f"Subject: {subject}\r\n\r\n{text}")
        return subject

    def fate(self, to, **more):
        """Send a message, and give the event of its first attempt's end."""
        before = len(self.events())
        self.send(to, **more)
        wanted = {"delivery.delivered", "delivery.deferred", "delivery.failed"}
        return self.until(lambda: [one for one in self.events()[before:] if one["event"] in wanted])[0]

    def events(self):
        return list(read(self.state / "journal"))

    def until(self, look):
        end = time.monotonic() + PATIENCE
        while not (found := look()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)
        return found

    def reload(self):
        return list(call(self.state, "reload"))

    def processes(self, uid):
        """Give the processes of a user: number -> command line."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if path.stat().st_uid == uid:
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@pytest.fixture(scope="session")
def site(users):
    with tempfile.TemporaryDirectory(prefix="mailward-agent-", dir="/srv") as folder:
        base = Path(folder)
        base.chmod(0o755)
        made = Site(base, users)
        made.start()
        try:
            yield made
        finally:
            made.end()


#: An agent whose supervisor is the test: it hands its socket over and waits.
ALONE = """\
import json, signal, socket, sys
from pathlib import Path
from gateway import agent

def serve(shares, door):
    socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [door.fileno()])
    signal.pause()

base = Path(sys.argv[2])
sys.exit(agent.run(base, lambda: json.loads((base / "plan.json").read_text()), serve))
"""


class Door:
    """What a worker that was taken over may say to the agent, and what it hears."""

    def __init__(self, base, users):
        self.base = base
        self.users = users
        self.gateway, self.ann, self.joe = USERS
        self.plan = {
            "user": GATEWAY,
            "user_at": None,
            "state": str(base / "state"),
            "workers": 1,
            "listeners": [],
            "files": [],
            "accounts": {"virtual": {}, "alias": None, "assign": "", "system": True, "floor": 1000},
            "site": {"hostname": "mail.example.org", "postmaster": "ann@example.org", "base": str(base)},
            "plugins": {"dot_qmail": {"path": str(DOT_QMAIL), "section": {}}},
            "logins": {},
            "limits": {"memory": 1 << 30, "processes": 1000, "files": 1024},
        }
        self.process = self.way = None

    def start(self):
        self.write()
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ALONE, str(theirs.fileno()), self.base], pass_fds=[theirs.fileno()]
        )
        with ours:
            theirs.close()
            ours.settimeout(PATIENCE)
            _, (door,), _, _ = socket.recv_fds(ours, 1, 1)
        self.way = socket.socket(fileno=door)
        return self

    def write(self):
        (self.base / "plan.json").write_text(json.dumps(self.plan))

    def say(self, data, files=()):
        """Send a request; gives the answer and the files that come with it."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                socket.send_fds(self.way, [data], [*files, theirs.fileno()])
            ours.settimeout(PATIENCE)
            said, found, _, _ = socket.recv_fds(ours, 1 << 20, 16)
            while said and (more := ours.recv(1 << 20)):
                said += more
        return json.loads(said) if said else None, found

    def account(self, name, home=None, request=b"", body=None):
        """Send a request to the child of an account."""
        home = self.users[name].pw_dir if home is None else home
        with contextlib.ExitStack() as stack:
            number = os.memfd_create("request")
            stack.callback(os.close, number)
            os.write(number, request if isinstance(request, bytes) else json.dumps(request).encode())
            files = [number] if body is None else [number, body]
            return self.say({"do": "account", "account": name, "home": str(home)}, files)[0]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self.way.close()


@pytest.fixture
def door(users):
    """Give an agent that is to be started, once `plan` is as the test wants it."""
    with tempfile.TemporaryDirectory(prefix="mailward-agent-", dir="/srv") as folder:
        base = Path(folder)
        base.chmod(0o755)
        made = Door(base, users)
        yield made
        if made.process:
            made.end()
