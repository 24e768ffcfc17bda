"""A login that is locked while it sends: its sessions end at once, and what is not queued yet never is."""

import asyncio
import base64
import socket
import time

import pytest

from gateway.authentication import passwords
from gateway.services import Clock
from gateway.testing.fakes import FakeDns
from gateway.testing.running import Running

from .conftest import ANN, HASHER

LISTENER = 'listeners: !replace [{name: mx, protocol: PROTOCOL, address: "127.0.0.1:0", KEYS}]\n'
YAML = LISTENER.replace("KEYS", "auth: optional, auth_without_tls: true, tls: none") + "auth_file: {}\n"
LOGIN = b"AUTH PLAIN " + base64.b64encode(f"\0{ANN}\0secret".encode()) + b"\r\n"
ENVELOPE = f"MAIL FROM:<{ANN}>\r\n".encode() + b"".join(
    f"RCPT TO:<{who}@elsewhere.example>\r\n".encode() for who in ("friend", "other")
)
LAST = b"421 4.7.0 this login was locked\r\n"
#: Says that it was asked, and lets the message wait until the test has done its part.
SLOW = """
import asyncio
from pathlib import Path
from gateway import Plugin, hookimpl

class Slow(Plugin):
    @hookimpl
    async def message(self):
        Path("{base}/asked").touch()
        while not Path("{base}/done").exists():
            await asyncio.sleep(0.01)
"""


@pytest.fixture
def site(tmp_path):
    """Give `site(protocol)`: a gateway that knows ANN."""

    def start(protocol="smtp"):
        passwords.change(tmp_path / "passwords", ANN, lambda _: passwords.Kept(ANN, HASHER.hash("secret")))
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins" / "slow.py").write_text(SLOW.format(base=tmp_path))
        return Running(tmp_path, YAML.replace("PROTOCOL", protocol), Clock(), FakeDns())

    return start


class Client:
    def __init__(self, port, hello):
        self._link = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._said = self._link.makefile("rb")
        self.answers(b"", 1)
        assert self.answers(hello + b" client.example\r\n" + LOGIN, 2)[-1].startswith(b"235")

    def answers(self, text, count):
        self._link.sendall(text)
        found = []
        while len(found) < count:
            line = self._said.readline()
            found += [line] * (line[3:4] != b"-")
        return found

    def rest(self, text=b""):
        """Send, and give all that is said until the end."""
        self._link.sendall(text)
        with self._said, self._link:
            return self._said.read()


def lock(gateway):
    async def end():
        return gateway._worker.end_sessions(ANN)

    passwords.change(gateway.base / "passwords", ANN, lambda kept: passwords.locked(kept, lock=True))
    return asyncio.run_coroutine_threadsafe(end(), gateway._loop).result(10)


def test_a_session_ends_in_the_midst_of_content(site):
    with site() as gateway:
        clients = [Client(gateway.port, b"EHLO") for _ in range(2)]
        for client, begin, replies in zip(clients, (b"DATA\r\n", b"BDAT 1000\r\n"), (1, 0), strict=True):
            client.answers(ENVELOPE, 3)
            client.answers(begin + b"Subject: half\r\n", replies)
        assert lock(gateway) == 2
        assert [client.rest() for client in clients] == [LAST, LAST]
        assert [one["reason"] for one in gateway.wait_for("session.closed", 2)] == ["locked", "locked"]
        assert gateway.events("message.accepted") == []


@pytest.mark.parametrize(("protocol", "hello", "count"), [("smtp", b"EHLO", 1), ("lmtp", b"LHLO", 2)])
def test_a_message_that_is_being_looked_at_is_not_taken(site, protocol, hello, count):
    with site(protocol) as gateway:
        client = Client(gateway.port, hello)
        client.answers(ENVELOPE + b"DATA\r\n", 4)
        client._link.sendall(b"Subject: whole\r\n\r\nwhole\r\n.\r\n")
        end = time.monotonic() + 10
        while not (gateway.base / "asked").exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        assert lock(gateway) == 1
        (gateway.base / "done").touch()
        # One reply to the dot, or one for each recipient; it is the last word.
        assert client.rest() == LAST * count
        assert gateway.wait_for("message.refused")[0]["reason"] == "locked"
        assert gateway.wait_for("session.closed")[0]["reason"] == "locked"
        assert gateway.events("message.accepted") == []
