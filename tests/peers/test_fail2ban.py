"""fail2ban reads what a gateway wrote: who guesses passwords is banned, and nobody else can be named."""

import base64
import re
import shutil
import smtplib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from peer import eventually, program

from gateway.services import Clock
from gateway.testing.fakes import FakeDns
from gateway.testing.running import Running

pytestmark = pytest.mark.peer("fail2ban")

CONTRIB = Path(__file__).parents[2] / "contrib" / "fail2ban"
FILTER = CONTRIB / "mailward.conf"
CONF = """\
listeners: !replace
  - {{name: submit, protocol: smtp, address: "127.0.0.1:0", auth: required, auth_without_tls: true}}
auth_file: {{}}
limits: {{auth_failures: {failures}}}
journal: {{outputs: [{{to: {log}}}]}}
"""
#: In place of a firewall: what is banned and let go stands in a file, and loopback may be.
ACTION = """\
[Definition]
actionban = echo 'ban <ip> for <bantime> at <port>' >> {done}
actionunban = echo 'unban <ip>' >> {done}
"""
SERVER = """\
[DEFAULT]
socket = {folder}/socket
pidfile = {folder}/pid
dbfile = {folder}/db
logtarget = {folder}/said
"""
LOCAL = """\
[mailward]
ignoreself = false
logpath = {log}
banaction = to-file
"""
#: Logins that would name another address to a reader who does not mind quotes.
HOSTILE = (
    '"client.ip":"192.0.2.66"',
    '","client.ip":"192.0.2.66","reason":"credentials","x":"',
    '\\","client.ip":"192.0.2.66"',
    '{"time":"2026-01-01T00:00:00.000000Z","event":"auth.failed","client.ip":"192.0.2.66"',
)


def found(file):
    """Give the addresses that the filter finds, one a match."""
    command = [program("fail2ban-regex"), "--out", "ip", str(file), str(FILTER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return re.findall(r"^[0-9a-f.:]+$", done.stdout, re.MULTILINE)


def guess(gateway, login, source="127.0.0.1"):
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", 20, (source, 0)) as client:
        client.ehlo()
        said = base64.b64encode(f"\0{login}\0guess".encode()).decode()
        return client.docmd("AUTH", f"PLAIN {said}")[0]


def test_every_failed_login_is_found_under_its_own_address(tmp_path):
    (tmp_path / "passwords").touch()
    log = tmp_path / "events.log"
    conf = CONF.format(log=log, failures=1 + len(HOSTILE))
    with Running(tmp_path, conf, Clock(), FakeDns()) as gateway:
        # Each waits longer than the one before: all at once, they wait together.
        with ThreadPoolExecutor() as pool:
            assert set(pool.map(partial(guess, gateway), ("ann", *HOSTILE))) == {535}
        assert guess(gateway, "ann") == 421
        gateway.wait_for("limit.exceeded")
    lines = [one for one in log.read_text().splitlines() if "auth" in one]
    assert found(log) == ["127.0.0.1"] * (2 + len(HOSTILE))
    (first, *_) = [one for one in lines if '"auth.failed"' in one]
    others = [
        # As systemd's journal hands it on.
        f"host mailward[12]: {first.replace('127.0.0.1', '192.0.2.1')}",
        first.replace('"credentials"', '"unavailable"'),
        first.replace("auth.failed", "auth.succeeded"),
        first.replace("127.0.0.1", "2001:db8::7"),
    ]
    log.write_text("\n".join(others) + "\n")
    assert found(log) == ["192.0.2.1", "2001:db8::7"]


@contextmanager
def banning(folder, log):
    """Run fail2ban as Debian has it, with the filter and the jail; gives the file of what it has done."""
    conf, done = folder / "fail2ban", folder / "done"
    shutil.copytree("/etc/fail2ban", conf, ignore=shutil.ignore_patterns("jail.d", "*.local"))
    (conf / "jail.d").mkdir()
    shutil.copy(FILTER, conf / "filter.d")
    shutil.copy(CONTRIB / "jail.conf", conf / "jail.d" / "mailward.conf")
    (conf / "jail.d" / "mailward.local").write_text(LOCAL.format(log=log))
    (conf / "action.d" / "to-file.conf").write_text(ACTION.format(done=done))
    (conf / "fail2ban.local").write_text(SERVER.format(folder=folder))
    done.touch()
    server = subprocess.Popen([program("fail2ban-server"), "-c", conf, "-f", "start"])
    try:
        yield done
    finally:
        server.terminate()
        assert server.wait(20) == 0, (folder / "said").read_text()


@pytest.mark.slow
def test_who_guesses_is_banned_and_let_go_at_its_end(tmp_path):
    (tmp_path / "passwords").touch()
    log = tmp_path / "events.log"
    with (
        Running(tmp_path, CONF.format(log=log, failures=20), Clock(), FakeDns()) as gateway,
        banning(tmp_path, log) as done,
        ThreadPoolExecutor() as pool,
    ):
        # One of them stays below what the jail allows.
        sources = ["127.0.0.2"] * 4 + ["127.0.0.1"] * 5
        assert set(pool.map(partial(guess, gateway, "ann"), sources)) == {535}
        eventually(done.read_text)
    assert done.read_text() == "ban 127.0.0.1 for 3600 at smtp,submission,submissions\nunban 127.0.0.1\n"


def test_the_journal_is_searched_for_each_unit():
    (match,) = re.findall(r"^journalmatch = (.*)$", FILTER.read_text(), re.MULTILINE)
    units = (CONTRIB.parent / "systemd").glob("*.service")
    assert sorted(match.split(" + ")) == sorted(f"_SYSTEMD_UNIT={unit.name}" for unit in units)
