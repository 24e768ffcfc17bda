"""A machine within this one: its first process is a systemd, and all that it changes is gone with it."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

BOOT = Path(__file__).with_name("boot")
SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "pivot_root", "ip", "systemctl")
UNSHARE = ("--mount", "--uts", "--ipc", "--net", "--cgroup", "--pid", "--fork", "--kill-child")
ENTER = ("--mount", "--uts", "--ipc", "--net", "--cgroup", "--pid", "--root", "--wd")
SEND = """\
import smtplib, sys
with smtplib.SMTP(sys.argv[1], 25, timeout=50) as client:
    client.sendmail("ann@example.com", sys.argv[2], "Subject: by SMTP\\r\\n\\r\\nx\\r\\n")
"""


class CannotBoot(Exception):
    """This machine cannot have one within it."""


class Machine:
    """Commands run in it, and its files are read and written from here."""

    def __init__(self, first):
        self._first = first

    def __call__(self, *command, code=0, **more):
        """Run a command to its end; gives what it wrote."""
        done = subprocess.run(
            ["nsenter", f"--target={self._first}", *ENTER, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            **more,
        )
        assert code is None or done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout.rstrip("\n")

    def path(self, name):
        """Give the path from here of a file there."""
        return Path(f"/proc/{self._first}/root{name}")

    def state(self, unit):
        """Give whether systemd has it as active, inactive, failed ..."""
        return self("systemctl", "is-active", unit, code=None)

    def shown(self, unit, what):
        """Give a property of a unit."""
        return self("systemctl", "show", "--value", f"--property={what}", unit)

    def send(self, recipient, to="127.0.0.1"):
        """Hand a message in at port 25."""
        self("/usr/bin/python3", "-I", "-c", SEND, to, recipient)


def until(found):
    """Wait until it is so; gives what was found."""
    end = time.monotonic() + 60
    while not (what := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return what


@contextlib.contextmanager
def booted():
    """Give a machine; raises CannotBoot."""
    cgroup = _cgroup()
    with tempfile.TemporaryDirectory(prefix="mailward-machine-") as name, contextlib.ExitStack() as last:
        cgroup.mkdir()
        last.callback(_remove, cgroup)
        log = last.enter_context((Path(name) / "log").open("w+"))
        work = Path(name) / "work"
        work.mkdir()
        # Should this process be killed, so is the machine.
        begin = 'echo $$ > "$0/cgroup.procs" && exec setpriv --pdeathsig=KILL unshare "$@"'
        command = ["sh", "-c", begin, str(cgroup), *UNSHARE, "--propagation=private", str(BOOT), str(work)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        last.callback(_halt, process, cgroup)
        yield _ready(process, cgroup, log)


def _cgroup():
    if os.geteuid() != 0 or not SYSTEMD.exists() or not all(map(shutil.which, TOOLS)):
        raise CannotBoot("needs root, and: apt install systemd iproute2")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(where) / f"mailward-machine-{os.getpid()}"
    raise CannotBoot("no cgroup2 is mounted for writing")


def _ready(process, cgroup, log):
    """Wait until systemd has nothing left to start."""
    scope = cgroup / "init.scope" / "cgroup.procs"
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, IndexError):
            machine = Machine(scope.read_text().split()[0])
            if machine("systemctl", "is-system-running", code=None) in ("running", "degraded"):
                return machine
        time.sleep(0.1)
    log.seek(0)
    raise CannotBoot(f"systemd does not start here: {log.read().strip()[-200:] or 'without a word'}")


def _halt(process, cgroup):
    """End it in order if that can be, else by force."""
    with contextlib.suppress(OSError, IndexError, subprocess.TimeoutExpired):
        first = int((cgroup / "init.scope" / "cgroup.procs").read_text().split()[0])
        os.kill(first, signal.SIGRTMIN + 3)
        process.wait(30)
    if process.poll() is None:
        process.kill()  # and with it, by --kill-child, all that is in there
        process.wait(30)


def _remove(cgroup):
    """Remove a control group, whose last processes may not be gone yet."""
    end = time.monotonic() + 30
    while cgroup.exists():
        try:
            for path in sorted((one for one in cgroup.rglob("*") if one.is_dir()), reverse=True):
                path.rmdir()
            cgroup.rmdir()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)
