"""The units of systemd, as its own tools read them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "contrib" / "systemd"
ROOT = os.geteuid() == 0
pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="apt install systemd")
PAGE = UNITS.parents[1] / "docs" / "explanation" / "security.md"
SERVICES = ("mailward.service", "mailward-unprivileged.service")


def settings(name):
    """Give (key, value) of the lines of a unit."""
    lines = (UNITS / name).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if re.match(r"[A-Za-z]+=", line)]


def ran(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("name", SERVICES)
def test_the_exposure_is_what_the_page_says_at_most(name):
    (said,) = re.findall(rf"^- `{name}` has \*\*([\d.]+)\*\*", PAGE.read_text(), re.MULTILINE)
    done = ran("systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / name))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+) ", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= float(said)
    assert float(found[1]) <= (2.0 if "unprivileged" in name else 3.0)


def test_systemd_finds_nothing_wrong(tmp_path):
    for path in UNITS.glob("mailward*.s[eo]*"):
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/mailward", "/bin/true"))
    units = [str(path) for path in tmp_path.iterdir() if path.suffix in (".service", ".socket")]
    assert len(units) == 3
    done = ran("systemd-analyze", "verify", "--man=no", *units)
    assert (done.returncode, [one for one in done.stderr.splitlines() if "mailward" in one]) == (0, [])


def test_root_keeps_four_capabilities_and_the_other_unit_none():
    assert dict(settings("mailward.service"))["CapabilityBoundingSet"].split() == [
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
    ]
    alone = dict(settings("mailward-unprivileged.service"))
    assert (alone["User"], alone["CapabilityBoundingSet"], alone["AmbientCapabilities"]) == (
        "mailward",
        "",
        "",
    )


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_hears_the_main_process_alone_and_drops_no_event(name):
    found = dict(settings(name))
    assert (found["Type"], found["NotifyAccess"]) == ("notify", "main")
    assert (found["LogRateLimitIntervalSec"], int(found["LogRateLimitBurst"])) == ("1s", 1_000_000)


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_users_and_folders_are_made(tmp_path):
    (tmp_path / "etc").mkdir()
    for kind in ("sysusers", "tmpfiles"):
        folder = tmp_path / "usr" / "lib" / f"{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(UNITS / f"mailward.{kind}", folder / "mailward.conf")
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        done = ran(*command, f"--root={tmp_path}")
        assert done.returncode == 0, done.stderr
    users = dict(line.split(":", 1) for line in (tmp_path / "etc" / "passwd").read_text().splitlines())
    assert users["mailward"].endswith(":/var/lib/mailward:/usr/sbin/nologin")
    assert users["alias"].endswith(":/var/lib/mailward-alias:/usr/sbin/nologin")
    assert re.search(r"^mailward-admin:.*:mailward$", (tmp_path / "etc" / "group").read_text(), re.MULTILINE)
    uid = int(users["mailward"].split(":")[1])
    made = {name: (tmp_path / "var" / "lib" / name).stat() for name in ("mailward", "mailward/drop")}
    assert {name: (oct(one.st_mode & 0o7777), one.st_uid) for name, one in made.items()} == {
        "mailward": ("0o751", uid),
        "mailward/drop": ("0o3733", uid),
    }


CONF = """\
gateway: {{hostname: mail.example.org, state: {base}/var, workers: 2}}
listeners: [{{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}]
"""


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="apt install systemd")
def test_started_by_a_connection_at_a_socket_that_systemd_has_opened(open_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = open_folder / "conf.d"
    conf.mkdir()
    (conf / "1.yaml").write_text(CONF.format(base=open_folder, port=port))
    if ROOT:
        os.chown(open_folder, 65534, 65534)
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if ROOT else []
    gateway = [sys.executable, "-m", "gateway.commands", "run", "--conf", str(conf)]
    activate = [shutil.which("systemd-socket-activate"), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*drop, *activate, *gateway],
        cwd=UNITS.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        with connected(port) as link, link.makefile("rwb") as lines:
            assert lines.readline().startswith(b"220 mail.example.org ")
            assert f"(pid {process.pid}, uid {65534 if ROOT else os.geteuid()})" in process.stdout.readline()
            lines.write(b"QUIT\r\n")
            lines.flush()
            assert lines.readline().startswith(b"221 ")
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
    assert process.wait(50) == 0


def connected(port):
    """Connect as soon as somebody listens."""
    end = time.monotonic() + 50
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=50)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.05)
