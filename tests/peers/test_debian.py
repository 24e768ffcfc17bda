"""The Debian package: built, installed on this machine, run as its unit runs it, removed and purged."""

import contextlib
import os
import pwd
import re
import shutil
import smtplib
import socket
import subprocess
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
CONF = Path("/etc/mailward/conf.d")
STATE = Path("/var/lib/mailward")
ACCOUNT = "nobody"
OURS = """\
gateway: {{hostname: mail.example.org, workers: 1}}
listeners: !replace [{{name: mx, protocol: smtp, address: "127.0.0.1:{port}"}}]
rcpthosts: {{domains: [example.org]}}
virtual_domains: {{domains: {{example.org: abc}}}}
accounts: {{virtual: {{abc: {{home: {home}}}}}}}
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages"),
    pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no Debian"),
    pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="apt install systemd"),
    pytest.mark.skipif(Path("/etc/mailward").exists(), reason="there is a Mailward on this machine"),
]


def ran(*command, code=0, **more):
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400, check=False, **more
    )
    assert done.returncode == code, f"{command}\n{done.stdout}"
    return done.stdout


def left():
    """Give all of this machine that bears our name, but for dpkg's own lists."""
    folders = ("/etc", "/usr", "/var/lib", "/run", "/opt")
    found = ran(
        "find", *folders, "-xdev", "-path", "/var/lib/dpkg", "-prune", "-o", "-name", "*mailward*", "-print"
    )
    names = [
        one.split(":")[0]
        for file in ("passwd", "group")
        for one in Path(f"/etc/{file}").read_text().splitlines()
    ]
    return set(found.splitlines()), sorted(names)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return ran(str(CHECKOUT / "contrib/debian/build"), str(tmp_path_factory.mktemp("deb"))).splitlines()[-1]


@pytest.fixture
def installed(package):
    ran("dpkg", "--install", package)
    yield package
    ran("dpkg", "--purge", "mailward")
    shutil.rmtree("/etc/mailward", ignore_errors=True)


@contextlib.contextmanager
def served():
    """Run the agent with the capabilities that the unit leaves it, and no others."""
    unit = Path("/usr/lib/systemd/system/mailward.service").read_text()
    (kept,) = re.findall(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    (command,) = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    bounds = ",".join(["-all", *(f"+{one.removeprefix('CAP_').lower()}" for one in kept.split())])
    with subprocess.Popen(
        ["setpriv", f"--bounding-set={bounds}", "--no-new-privs", *command.split()],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    ) as process:
        try:
            assert process.stdout.readline().startswith("Mailward serves mx at ")
            yield process
        finally:
            process.terminate()
            code = process.wait(60)
    assert code == 0


def arrived(home, count):
    """Wait for mail; gives its files."""
    end = time.monotonic() + 60
    while len(found := list((home / "Maildir/new").iterdir())) < count:
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_installed_run_removed_and_purged(installed, open_folder):
    home = open_folder / "abc"
    for name in ("tmp", "new", "cur"):
        (home / "Maildir" / name).mkdir(parents=True)
    account, gateway = pwd.getpwnam(ACCOUNT), pwd.getpwnam("mailward")
    for path in (home, *home.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)
    (home / ".qmail-default").write_text("./Maildir/\n")

    assert re.fullmatch(r"mailward \d.*|\d\S*", ran("/usr/bin/mailward", "version").splitlines()[0])
    ran("/usr/bin/mailward", "check")  # as it is shipped
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (CONF / "50-ours.yaml").write_text(OURS.format(port=port, home=home))
    ran("/usr/bin/mailward", "check")

    with served():
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.sendmail("ann@example.com", ["joe@example.org"], "Subject: by SMTP\r\n\r\nx\r\n")
        nobody = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        ran(*nobody, "/usr/lib/mailward/qmail/sendmail", "joe@example.org", input="Subject: by hand\n\nx\n")
        found = arrived(home, 2)
        assert {one.stat().st_uid for one in found} == {account.pw_uid}
        assert STATE.stat().st_uid == gateway.pw_uid
        assert "mailward-admin" in ran("stat", "-c", "%G", str(STATE / "control"))

    ran("dpkg", "--install", installed)  # an upgrade leaves the site's own
    assert (CONF / "50-ours.yaml").exists()
    ran("dpkg", "--remove", "mailward")
    assert not Path("/usr/lib/mailward").exists()
    assert (CONF / "10-gateway.yaml").exists()
    assert (STATE / "queue").is_dir()


def test_purge_leaves_what_the_administrator_made(package):
    before, names = left()
    ran("dpkg", "--install", package)
    (CONF / "50-ours.yaml").write_text("gateway: {hostname: mail.example.org}\n")
    ran("/usr/bin/mailward", "check")
    ran("dpkg", "--purge", "mailward")
    try:
        after, names_after = left()
        assert after - before == {"/etc/mailward"}
        assert names_after == names
        assert [path.name for path in Path("/etc/mailward").rglob("*") if path.is_file()] == ["50-ours.yaml"]
    finally:
        shutil.rmtree("/etc/mailward")
