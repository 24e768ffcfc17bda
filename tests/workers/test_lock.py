"""`mailward passwd --lock` ends the live sessions of a login, in every worker, and no others."""

import base64
import subprocess
import sys
from pathlib import Path

import argon2
import pytest

from gateway.authentication import passwords

pytestmark = pytest.mark.timeout(240)
MAILWARD = Path(sys.executable).with_name("mailward")
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=64)
MORE = """\
listeners: !replace
  - {{name: mx, protocol: smtp, address: "127.0.0.1:{port}", auth: optional, auth_without_tls: true}}
auth_file: {{}}
"""


def logged_in(site, login):
    client = site.client()
    secret = base64.b64encode(f"\0{login}\0secret".encode()).decode()
    assert client.docmd("AUTH", f"PLAIN {secret}")[0] == 235
    return client


def workers_of(site):
    return {one["stream"] for one in site.events("auth.succeeded") if one["user"] == "ann"}


def test_all_sessions_of_the_login_end_and_no_others(site):
    for login in ("ann", "joe"):
        kept = passwords.Kept(login, HASHER.hash("secret"))
        passwords.change(site.base / "passwords", login, lambda _, kept=kept: kept)
    site.configure(MORE.format(port=site.port), workers=2)
    site.own()
    site.start()
    anns = []

    def both_workers_have_one():
        anns.append(logged_in(site, "ann"))
        return len(workers_of(site)) == 2

    site.until(both_workers_have_one)
    joe = logged_in(site, "joe")
    done = subprocess.run(
        [MAILWARD, "passwd", "--conf", site.base / "conf.d", "--lock", "ann"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(anns)} sessions were ended" in done.stdout
    for one in anns:
        assert one.getreply() == (421, b"4.7.0 this login was locked")
        assert one.sock.recv(1) == b""
        one.close()
    assert joe.docmd("MAIL FROM:<joe@mail.example.org>")[0] == 250
    joe.close()
    with site.client() as client:
        secret = base64.b64encode(b"\0ann\0secret").decode()
        assert client.docmd("AUTH", f"PLAIN {secret}")[0] == 535
    assert site.stop() == 0
