"""A gateway process of its own, and what all tests with other mail programs share."""

import mailbox
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gateway import console, journal

#: As root the gateway becomes this user, and the homes are another's, whose programs may run.
USER = "nobody"
OWNER = os.geteuid() or 61003
MAILWARD = Path(sys.executable).with_name("mailward")
_PATIENCE = 20.0

CONF = """\
gateway: {{hostname: mail.gateway.example, state: var, user: {user}, postmaster: postmaster@example.org}}
listeners:
  - {{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}
relay_control: {{clients: [127.0.0.1]}}
rcpthosts: {{domains: [example.org, example.net]}}
virtual_domains: {{domains: {{example.org: abc, example.net: xyz}}}}
accounts:
  virtual:
    abc: {{home: home/abc}}
    xyz: {{home: home/xyz}}
plugins: {{folders: [plugins]}}
"""

#: In place of quadratic_retry: what is deferred is tried again at once.
SOON = '''\
"""quadratic_retry: try again after 0.2 s."""

from gateway import Delivery, Plugin, hookimpl


class Soon(Plugin):
    @hookimpl
    def retry(self, delivery: Delivery) -> float:
        return self.clock.time() + 0.2
'''


def folder_of(stack):
    """Make a folder; pytest's own are closed to the user that the gateway and Postfix become."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
    folder.chmod(0o755)
    return folder


class Gateway:
    """`mailward run` in a folder of its own: `abc` has example.org, `xyz` example.net."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self._process = None
        for part in ("conf.d", "plugins"):
            (folder / part).mkdir()
        self.configure("10-site.yaml", CONF.format(user=USER, port=self.port))
        for name in ("abc", "xyz"):
            self.home(name, default="./Maildir/\n")

    def configure(self, name, text):
        """Write a file of the configuration."""
        (self.folder / "conf.d" / name).write_text(text)

    def plug(self, name, text):
        """Drop a plugin in."""
        (self.folder / "plugins" / f"{name}.py").write_text(text)

    def home(self, name, **files):
        """Make a home with a Maildir and such `.qmail` files."""
        home = self.folder / "home" / name
        made = [home, home / "Maildir", *(home / "Maildir" / part for part in ("tmp", "new", "cur"))]
        for path in made:
            path.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (home / f".qmail-{file}").write_text(text)
            made.append(home / f".qmail-{file}")
        for path in made:
            os.chown(path, OWNER, OWNER if os.geteuid() == 0 else -1)

    def start(self, *, within=()):
        """Start it, by a command that starts commands if one is given, and wait until it serves."""
        with (self.folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                [*within, MAILWARD, "run", "--conf", self.folder / "conf.d"],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        said = self._process.stdout.readline()
        assert said.startswith(b"Mailward serves"), (said, (self.folder / "errors").read_text())

    def stop(self):
        """Stop it as a service manager does; it has to end well."""
        if self._process is None:
            return
        self._process.terminate()
        code = self._process.wait(40)
        self._process.stdout.close()
        assert (code, (self.folder / "errors").read_text()) == (0, "")

    def mailward(self, *arguments):
        """Run a command beside the gateway; gives what it prints."""
        done = subprocess.run(
            [MAILWARD, *arguments, "--conf", self.folder / "conf.d"],
            capture_output=True,
            check=True,
            timeout=20,
        )
        return done.stdout.decode()

    def messages(self, account="abc"):
        """Give what a Maildir holds: file name -> content."""
        new = self.folder / "home" / account / "Maildir" / "new"
        return {path.name: path.read_bytes() for path in new.iterdir()}

    def maildir(self, account="abc"):
        """Give a Maildir as Python's reader."""
        return mailbox.Maildir(self.folder / "home" / account / "Maildir", create=False)

    def received(self, count, *, having="", account="abc", patience=_PATIENCE):
        """Wait for so many messages with this text; gives them."""

        def there():
            found = [content for content in self.messages(account).values() if having.encode() in content]
            return found if len(found) >= count else None

        found = eventually(there, patience)
        assert len(found) == count
        return found

    def events(self, having, *names):
        """Give the journal's events about an address or a message, of these names."""
        read = journal.read(self.state / "journal", having=having)
        return [event for event in read if not names or event["event"] in names]

    def queued(self):
        """Give what waits in the queue, as `queue list --json` prints it."""
        return list(console.call(self.state, "queue.list"))

    def idle(self):
        """Wait until the queue is empty."""
        eventually(lambda: not self.queued())

    @property
    def state(self):
        return self.folder / "var"


def eventually(wanted, patience=_PATIENCE):
    """Ask another process's doings again and again until they are there; gives what they are."""
    end = time.monotonic() + patience
    while not (found := wanted()):
        assert time.monotonic() < end, f"not there after {patience:g} s"
        time.sleep(0.02)
    return found


def free_port():
    """Find a port that nobody has, outside of those that the system gives to clients."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port


def connected(port):
    """Say whether somebody serves there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def program(name):
    """Find a program that may stand where only root looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def wire(message):
    """Write a message with the line ends of the wire."""
    return message.replace(b"\n", b"\r\n")


def body(length, *, seed=0):
    """Make lines that a careless program would spoil: dots, empty ones, blanks at the end, long ones."""
    shapes = [".", "..", ".x", "", "From here on", "blanks  \t", "x" * 900, "y" * 998, "é" * 60, "=20", " x"]
    chosen = random.Random(seed).choices(shapes, k=length)
    return "".join(f"{line}\n" for line in [".", *chosen, "."]).encode()
