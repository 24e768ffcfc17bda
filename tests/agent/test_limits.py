"""What an account's own programs may take of the host: they are stopped at it, and nobody else notices."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROCESSES = 30
SMALL = f"dot_qmail: {{program_memory: 256M, program_processes: {PROCESSES}, program_files: 100}}\n"
BOMB = "|for i in $(seq 300); do sleep 600 & done\n"
EATER = f"|{sys.executable} -c 'bytearray(1 << 30)'\n"


@pytest.fixture(scope="module")
def small(site):
    """Give the gateway with small limits."""
    site.configure(SMALL)
    site.reload()
    yield site
    site.configure()
    site.reload()


@pytest.fixture
def bounded(small):
    """Give the same; what programs of joe and ann have left is ended behind the test."""
    yield small
    for name in (small.ann, small.joe):
        for pid, line in small.processes(small.users[name].pw_uid).items():
            if "gateway.partition.delivering" not in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for one in (*small.home[name].glob(".qmail*"), *small.home[name].glob("Maildir/new/*")):
            one.unlink()


def of_the_gateway(site):
    """Give the processes of the gateway that are no account's, and the memory that they have."""
    agent = site.process.pid
    found = {agent, *site.processes(site.users[site.gateway].pw_uid)}
    status = [Path(f"/proc/{pid}/status").read_text() for pid in found]
    return found, sum(int(re.search(r"VmRSS:\s+(\d+)", one)[1]) for one in status) * 1024


def test_no_program_can_raise_what_its_account_may_take(bounded):
    try_all = "".join(f"ulimit -{one} unlimited; ulimit -{one} 9999999; " for one in "vpn")
    bounded.qmail(bounded.joe, f"|(cat /proc/self/limits; for try in 1; do {try_all} done) > seen 2>&1\n")
    # The shell itself ends at the first that is refused.
    bounded.qmail(bounded.ann, "|(ulimit -p unlimited) 2>&1; (ulimit -n 9999) 2>&1; ulimit -v unlimited\n")
    assert bounded.fate(bounded.joe)["event"] == "delivery.deferred"
    seen = (bounded.home[bounded.joe] / "seen").read_text()
    for name, most in [
        ("Max address space", 256 << 20),
        ("Max processes", PROCESSES),
        ("Max open files", 100),
        ("Max core file size", 0),
    ]:
        assert re.search(rf"{name} +{most} +{most} ", seen), seen
    fate = bounded.fate(bounded.ann)
    assert fate["event"] == "delivery.deferred"
    assert fate["text"].count("Operation not permitted") == 3


def test_a_program_that_takes_memory_is_stopped_and_its_mail_waits(bounded):
    new = bounded.maildir(bounded.joe)
    bounded.qmail(bounded.joe, EATER)
    bounded.qmail(bounded.joe, "./Maildir/\n", ".qmail-more")
    before, memory = of_the_gateway(bounded)
    fate = bounded.fate(bounded.joe)
    assert fate["event"] == "delivery.deferred"
    assert "MemoryError" in fate["text"]
    # Neither the other mail of the account is touched by it, nor the gateway.
    assert bounded.fate(f"{bounded.joe}-more")["event"] == "delivery.delivered"
    assert len(list(new.iterdir())) == 1
    after, more = of_the_gateway(bounded)
    assert after == before
    assert more < memory + (100 << 20)


@pytest.mark.slow
def test_an_account_that_has_all_its_processes_cannot_be_become_and_says_so(bounded):
    joe = bounded.users[bounded.joe]
    # It would refuse the mail for now, at the door.
    bounded.configure(SMALL + "recipient_check: {enabled: false}\n")
    bounded.reload()
    with contextlib.ExitStack() as stack:
        for _ in range(PROCESSES):
            sleep = subprocess.Popen(["sleep", "600"], user=joe.pw_uid, group=joe.pw_gid, extra_groups=[])
            stack.callback(sleep.wait)
            stack.callback(sleep.kill)
        fate = bounded.fate(bounded.joe)
        assert fate["event"] == "delivery.deferred"
        assert "too many processes" in fate["text"]
    bounded.maildir(bounded.joe)
    assert bounded.fate(bounded.joe)["event"] == "delivery.delivered"
    bounded.configure(SMALL)
    bounded.reload()


# The last of those with small limits: what it leaves counts until somebody has buried it.
def test_a_fork_bomb_is_stopped_and_mail_of_others_goes_on(bounded):
    new = bounded.maildir(bounded.ann)
    bounded.qmail(bounded.joe, BOMB)
    before, memory = of_the_gateway(bounded)
    fate = bounded.fate(bounded.joe)
    assert fate["event"] == "delivery.deferred"
    assert "Cannot fork" in fate["text"]
    bombs = bounded.processes(bounded.users[bounded.joe].pw_uid)
    assert PROCESSES / 2 < len(bombs) <= PROCESSES
    # The account itself has no mail as long as they are there; it is kept, and everybody else has it.
    assert bounded.fate(bounded.joe)["event"] == "delivery.deferred"
    assert bounded.fate(bounded.ann)["event"] == "delivery.delivered"
    assert len(list(new.iterdir())) == 1
    after, more = of_the_gateway(bounded)
    assert after == before
    assert more < memory + (100 << 20)
    for pid, line in bombs.items():
        if line.startswith("sleep"):
            os.kill(pid, signal.SIGKILL)
    new = bounded.maildir(bounded.joe)
    bounded.qmail(bounded.joe, "./Maildir/\n")
    assert bounded.fate(bounded.joe)["event"] == "delivery.delivered"
    assert len(list(new.iterdir())) == 1


@pytest.mark.slow
def test_many_deliveries_at_a_time_fit_into_the_usual_limits(site):
    site.configure("queue: {concurrency: {local: 100}}\n")
    site.reload()
    home, before = site.home[site.joe], len(site.events())
    site.qmail(site.joe, "|echo x >> began; while ! test -e go; do sleep 0.1; done\n")
    try:
        for _ in range(60):
            site.send(site.joe)
        site.until(lambda: (home / "began").is_file() and (home / "began").read_text().count("x") >= 60)
        (home / "go").touch()
        site.until(lambda: sum(one["event"] == "delivery.delivered" for one in site.events()[before:]) == 60)
    finally:
        (home / ".qmail").unlink()
        site.configure()
        site.reload()
