"""The gateway does nothing that its units forbid: strace sees it from start to end, with deliveries."""

import os
import re
import shutil
import smtplib
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "contrib" / "systemd"
#: The gateway's user, and an account that is not, so that the agent has to become it.
OWNER, OTHER = 65534, 65533
AS_OWNER = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups"]
pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.slow,
    pytest.mark.peer("strace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="apt install systemd"),
]


def calls_of(word):
    """Give the calls of a set of systemd's, or the one that is named."""
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", word], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    words = [line.strip() for line in listed if line.strip() and "#" not in line]
    return set().union(*map(calls_of, words))


def allowed(unit):
    """Give the calls that the lines SystemCallFilter= of a unit leave."""
    left = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", (UNITS / unit).read_text(), re.MULTILINE):
        named = set().union(*(calls_of(word) for word in line.removeprefix("~").split()))
        left = left - named if line.startswith("~") else left | named
    return left


@pytest.mark.parametrize(
    ("unit", "owner"), [("mailward.service", OTHER), ("mailward-unprivileged.service", OWNER)]
)
def test_the_filters_of_a_unit_forbid_nothing_that_is_done(gateways, unit, owner):
    gateway = gateways()
    for path in (home := gateway.folder / "home/abc", *home.rglob("*")):
        os.chown(path, owner, owner)
    (home / ".qmail-default").write_text("./Maildir/\n|cat > /dev/null\n")
    drops = gateway.folder / "var/drop"
    drops.mkdir(parents=True)
    drops.chmod(0o3733)
    traces = gateway.folder / "trace"
    traces.mkdir()
    # What is above a home is the account's or root's.
    for path in (traces, drops.parent, drops, *([gateway.folder] if owner == OWNER else [])):
        os.chown(path, OWNER, OWNER)
    drops.chmod(0o3733)  # as tmpfiles.d makes it; a chown takes the bit away
    begin = AS_OWNER if "unprivileged" in unit else []
    gateway.start(within=[*begin, "strace", "-D", "-ff", "-qq", "-o", f"{traces}/of"])
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=60) as client:
        for size in (1, 200_000):
            client.sendmail("ann@example.com", ["joe@example.org"], "Subject: x\r\n\r\n" + "z\r\n" * size)
    gateway.received(2)
    gateway.mailward("reload")
    gateway.stop()

    seen = "\n".join(path.read_text(errors="replace") for path in traces.iterdir())
    used = set(re.findall(r"^(\w+)\(", seen, re.MULTILINE))
    assert {"execve", "fsync", "accept4"} <= used
    assert ("setresuid" in used) == (owner == OTHER)
    assert used - allowed(unit) == set()
    assert "PROT_WRITE|PROT_EXEC" not in seen  # MemoryDenyWriteExecute=
    assert set(re.findall(r"^socket\((AF_\w+)", seen, re.MULTILINE)) <= {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert re.findall(r"^\w*(?:chmod|mkdir|open|mknod)\w*\(.*\b0[2-7]\d{3}\)", seen, re.MULTILINE) == []
