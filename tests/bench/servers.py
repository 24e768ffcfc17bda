"""The two that are compared, and the sink that both relay to: context managers around real processes."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

NEEDED = ("postfix", "smtp-source", "smtp-sink")
#: As root all runs and delivers as nobody.
ROOT = os.geteuid() == 0
OWNER = 65534 if ROOT else os.geteuid()
_TICKS = os.sysconf("SC_CLK_TCK")

_GATEWAY = """\
gateway: {{hostname: mail.example.org, state: var, postmaster: box@example.org}}
listeners:
  - {{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}
queue: {{concurrency: {{per_destination: 20}}}}     # as Postfix
relay_control: {{clients: [127.0.0.1]}}
rcpthosts: {{domains: [example.org]}}
virtual_domains: {{domains: {{example.org: abc}}}}
accounts: {{system: false, virtual: {{abc: {{home: home}}}}}}
remote: {{routes: {{relay.test: "127.0.0.1:{sink}"}}}}
"""
_MAIN = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
daemon_directory = {daemons}
myhostname = peer.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
alias_maps =
alias_database =
biff = no
virtual_mailbox_domains = example.org
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}
transport_maps = inline:{{relay.test=smtp:[127.0.0.1]:{sink}}}
"""
_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def cpu(pid):
    """Give the seconds of CPU that a process, its children and those already gone have used."""
    found = 0
    for one in [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            found += sum(map(int, fields[11:15]))
    return found / _TICKS


class Maildir:
    """Where local mail of one server arrives; `fresh` moves what came so far aside."""

    def __init__(self, path):
        self.path = path
        self._rounds = 0

    def fresh(self):
        aside = self.path.with_name(f"{self.path.name}-{self._rounds}")
        self._rounds += 1
        if self.path.exists():
            self.path.rename(aside)
        for path in (self.path, *(self.path / part for part in ("tmp", "new", "cur"))):
            path.mkdir()
            os.chown(path, OWNER, -1)

    def count(self):
        return sum(1 for _ in os.scandir(self.path / "new"))


class Sink:
    """Postfix's smtp-sink, which counts what it takes."""

    def __enter__(self):
        self.port, self._count = free_port(), 0
        words = ["smtp-sink", *(["-u", "nobody"] if ROOT else []), "-c", f"127.0.0.1:{self.port}", "1024"]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE)
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(self.port)
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.wait()

    def count(self):
        return self._count

    def _read(self):
        while said := self._process.stdout.read1(65536):
            if counts := re.findall(rb"mesg=\s*(\d+)", said):
                self._count = int(counts[-1])


class Gateway:
    """The gateway of this checkout, as nobody."""

    name = "mailward"

    def __init__(self, base, sink):
        self.port = free_port()
        self._base = base
        (base / "conf.d").mkdir(parents=True)
        (base / "home").mkdir()
        os.chown(base / "home", OWNER, -1)
        (base / "home" / ".qmail-default").write_text("./Maildir/\n")
        os.chown(base, OWNER, -1)
        (base / "conf.d" / "site.yaml").write_text(_GATEWAY.format(port=self.port, sink=sink))
        self._mail = Maildir(base / "home" / "Maildir")
        self.fresh, self.count = self._mail.fresh, self._mail.count

    def __enter__(self):
        words = [sys.executable, "-m", "gateway.commands", "run", "--conf", self._base / "conf.d"]
        rights = {"user": OWNER, "group": OWNER, "extra_groups": []} if ROOT else {}
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=self._base, **rights)
        wait_for(self.port)
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.wait()

    @property
    def pid(self):
        return self._process.pid


class Postfix:
    """A Postfix of its own, with its own folders, that delivers as its virtual(8) does."""

    name = "postfix"

    def __init__(self, base, sink):
        self.port = free_port()
        self._conf = base / "etc"
        for path in (self._conf, base / "queue", base / "data", base / "mail"):
            path.mkdir(parents=True)
        shutil.chown(base / "data", "postfix")
        os.chown(base / "mail", OWNER, -1)
        daemons = subprocess.run(
            ["postconf", "-dh", "daemon_directory"], check=True, capture_output=True, text=True
        )
        about = {"base": base, "daemons": daemons.stdout.strip(), "uid": OWNER, "sink": sink}
        (self._conf / "main.cf").write_text(_MAIN.format(**about))
        (self._conf / "master.cf").write_text(_MASTER.format(port=self.port))
        self._pid_file = base / "queue" / "pid" / "master.pid"
        self._mail = Maildir(base / "mail" / "box")
        self.fresh, self.count = self._mail.fresh, self._mail.count

    def __enter__(self):
        self._postfix("start")
        wait_for(self.port)
        self.pid = int(self._pid_file.read_text())
        return self

    def __exit__(self, *error):
        self._postfix("stop")

    def _postfix(self, verb):
        subprocess.run(["postfix", "-c", self._conf, verb], check=True, stderr=subprocess.DEVNULL, timeout=30)


def wait_for(port):
    """Wait until somebody listens."""
    until = time.monotonic() + 15
    while True:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > until:
            raise SystemExit(f"nobody listens at port {port}")
        time.sleep(0.05)
