"""Whom nobody knows is refused at RCPT: no message, so no bounce to whoever was named as its sender."""

import os
import socket

import pytest

from gateway.services import Clock
from gateway.testing.fakes import FakeDns
from gateway.testing.running import Running

CONF = """\
rcpthosts: {domains: [example.org]}
virtual_domains: {domains: {example.org: abc}}
accounts: {virtual: {abc: {home: abc, uid: 1234, gid: 1234}}}
limits: {bad_commands: 20000}
"""


@pytest.fixture
def gateway(tmp_path):
    """Give a gateway that knows `info@example.org` alone."""
    home = tmp_path / "abc"
    home.mkdir()
    (home / ".qmail-info").write_text("./Maildir/\n")
    if os.geteuid() == 0:
        os.chown(home, 1234, 1234)
    with Running(tmp_path, CONF, Clock(), FakeDns()) as gateway:
        yield gateway


def replies(gateway, lines):
    """Send lines in one go; gives the last lines of all replies."""
    with socket.create_connection(("127.0.0.1", gateway.port), 60) as client:
        client.sendall(b"".join(line + b"\r\n" for line in lines))
        said = client.makefile("rb").read().splitlines()
    return [line for line in said if line[3:4] == b" "]


def test_ten_thousand_make_no_bounce(gateway):
    unknown = [b"RCPT TO:<u%d@example.org>" % one for one in range(5000)]
    begin = [b"EHLO x", b"MAIL FROM:<victim@elsewhere.example>"]
    end = [b"DATA", b"RSET", b"MAIL FROM:<s@elsewhere.example>", b"RCPT TO:<info@example.org>", b"QUIT"]
    for _ in range(2):
        said = replies(gateway, [*begin, *unknown, *end])
        assert {line[:9] for line in said[3:5003]} == {b"550 5.1.1"}
        # No message without a recipient; whom somebody knows is taken all the same.
        assert [line[:3] for line in said[5003:]] == [b"503", b"250", b"250", b"250", b"221"]
    assert len(gateway.wait_for("recipient.refused", 10_000)) == 10_000
    assert gateway.events("message.accepted") == []
