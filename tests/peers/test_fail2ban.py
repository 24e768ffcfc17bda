"""fail2ban reads what a gateway wrote: who guesses passwords is found, and nobody else can be named."""

import base64
import re
import smtplib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from peer import program

from gateway.services import Clock
from gateway.testing.fakes import FakeDns
from gateway.testing.running import Running

pytestmark = pytest.mark.peer("fail2ban")

FILTER = Path(__file__).parents[2] / "contrib" / "fail2ban" / "mailward.conf"
CONF = """\
listeners: !replace
  - {{name: submit, protocol: smtp, address: "127.0.0.1:0", auth: required, auth_without_tls: true}}
auth_file: {{}}
limits: {{auth_failures: {failures}}}
journal: {{outputs: [{{to: {log}}}]}}
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


def guess(gateway, login):
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as client:
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
