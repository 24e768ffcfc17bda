"""What a reload changes at a listener: it counts for whoever connects next, and for nobody who is there."""

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
import tempfile
import threading
from pathlib import Path

import pytest

from gateway.services import Clock
from gateway.testing.fakes import FakeDns
from gateway.testing.running import Running

LISTENER = 'listeners: !replace [{{name: mx, protocol: {protocol}, address: "127.0.0.1:0"{keys}}}]\n'
MORE = """\
tls: {certificates: [{certificate: mx.pem, key: mx.pem}]}
auth_file: {}
relay_control: !replace {clients: [10.0.0.5]}
"""


def site(keys="", protocol="smtp"):
    return LISTENER.format(protocol=protocol, keys=f", {keys}" if keys else "") + MORE


BEGINNING = site("xclient: [127.0.0.1]")


@pytest.fixture(scope="module")
def shared(authority):
    with running(authority) as made:
        yield made


@pytest.fixture
def gateway(shared):
    shared.reload(BEGINNING)
    return shared


@contextlib.contextmanager
def running(authority):
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority.issue_cert("mail.example.org").private_key_and_cert_chain_pem.write_to_path(base / "mx.pem")
        (base / "passwords").touch(mode=0o600)
        yield stack.enter_context(Running(base, BEGINNING, Clock(), FakeDns()))


class Client:
    """Says lines, and hears replies."""

    def __init__(self, link):
        self._link = link
        self._said = link.makefile("rb")

    @classmethod
    def of(cls, gateway, before=b"", trust=None):
        """Connect; a proxy's header may go before, and TLS may be what comes first."""
        link = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        link.sendall(before)
        return cls(trust.wrap_socket(link, server_hostname="mail.example.org") if trust else link)

    def hear(self):
        lines = []
        while not lines or lines[-1][3:4] == b"-":
            lines.append(self._said.readline())
            if not lines[-1]:
                return b""
        return b"".join(lines)

    def ask(self, line):
        self._link.sendall(line + b"\r\n")
        return self.hear()

    def close(self):
        self._link.close()
        self._said.close()


@pytest.fixture
def connect(gateway):
    with contextlib.ExitStack() as stack:
        yield functools.partial(connected, stack, gateway)


def connected(stack, gateway, **how):
    client = Client.of(gateway, **how)
    stack.callback(client.close)
    return client


def offers(client):
    """Give the words that EHLO says of extensions that keys of the listener switch."""
    said = client.ask(b"EHLO client.example").decode()
    return {line[4:].split()[0] for line in said.splitlines()} & {"STARTTLS", "XCLIENT", "AUTH"}


def test_new_keys_count_for_the_next_session_and_the_old_ones_for_those_under_way(gateway, connect):
    before = connect()
    assert before.hear().startswith(b"220")
    gateway.reload(site("tls: required"))
    after = connect()
    assert after.hear().startswith(b"220")
    assert offers(after) == {"STARTTLS"}
    assert after.ask(b"MAIL FROM:<a@example.com>").startswith(b"530")
    assert offers(before) == {"STARTTLS", "XCLIENT"}
    assert before.ask(b"MAIL FROM:<a@example.com>").startswith(b"250")
    assert before.ask(b"RSET").startswith(b"250")
    assert before.ask(b"XCLIENT ADDR=10.0.0.5").startswith(b"220")
    gateway.reload(site("tls: none, auth: required, auth_without_tls: true"))
    last = connect()
    last.hear()
    assert offers(last) == {"AUTH"}
    assert last.ask(b"MAIL FROM:<a@example.com>").startswith(b"530")


def test_what_stands_before_the_first_word_comes_and_goes_at_the_same_port(gateway, connect, authority):
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    header = b"PROXY TCP4 10.0.0.5 192.0.2.1 4000 25\r\n"
    before = connect()
    before.hear()
    gateway.reload(site("tls: implicit"))
    under_tls = connect(trust=trust)
    assert under_tls.hear().startswith(b"220")
    gateway.reload(site("proxy: [127.0.0.1]"))
    proxied = connect(before=header)
    assert proxied.hear().startswith(b"220")
    gateway.reload(site())
    plain = connect()
    assert plain.hear().startswith(b"220")
    for client, relays in ((before, False), (under_tls, False), (proxied, True), (plain, False)):
        assert client.ask(b"EHLO client.example").startswith(b"250")
        assert client.ask(b"MAIL FROM:<a@example.com>").startswith(b"250")
        assert client.ask(b"RCPT TO:<friend@elsewhere.example>").startswith(b"250" if relays else b"553")


def test_another_protocol_is_spoken_at_the_same_port(gateway, connect):
    before = connect()
    before.hear()
    gateway.reload(site(protocol="lmtp"))
    lmtp = connect()
    lmtp.hear()
    assert lmtp.ask(b"LHLO client.example").startswith(b"250")
    gateway.reload(site(protocol="milter"))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as mta:
        mta.sendall(struct.pack(">IcIII", 13, b"O", 6, 0x1FF, 0))
        assert mta.recv(5)[4:] == b"O"
    assert before.ask(b"EHLO client.example").startswith(b"250")
    assert lmtp.ask(b"MAIL FROM:<a@example.com>").startswith(b"250")


def test_a_client_whose_handshake_is_under_way_comes_to_its_session(gateway, connect):
    header = b"PROXY TCP4 10.0.0.5 192.0.2.1 4000 25\r\n"
    gateway.reload(site("proxy: [127.0.0.1]"))
    slow = connect(before=header[:10])
    # Whoever is served after it says that it was taken, too.
    assert connect(before=header).hear().startswith(b"220")
    gateway.reload(site())
    slow._link.sendall(header[10:])
    assert slow.hear().startswith(b"220")
    assert offers(slow) == {"STARTTLS"}


def test_nobody_is_refused_while_a_listener_changes(gateway):
    answers, over = [], threading.Event()

    def knock():
        while not over.is_set():
            client = Client.of(gateway)
            answers.append(client.hear()[:3])
            client.close()

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        for number in range(30):
            # One of them takes its connections by itself, since a proxy may have to be heard first.
            gateway.reload(site("proxy: [10.0.0.9]" if number % 2 else ""))
    finally:
        over.set()
        knocking.join()
    assert len(answers) > 10
    assert set(answers) == {b"220"}


def test_sessions_of_a_listener_that_changed_are_ended_with_their_login(gateway, connect):
    before = connect()
    before.hear()
    assert before.ask(b"XCLIENT LOGIN=ann@example.org ADDR=10.0.0.5").startswith(b"220")
    gateway.reload(site("tls: none"))

    async def lock():
        return gateway._worker.end_sessions("ann@example.org")

    assert asyncio.run_coroutine_threadsafe(lock(), gateway._loop).result(10) == 1
    assert before.hear().startswith(b"421")
    assert before.hear() == b""


def test_sessions_of_a_listener_that_changed_end_with_the_gateway(authority):
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(running(authority))
        changed = connected(stack, gateway)
        changed.hear()
        gateway.reload(site("tls: none"))
        dropped = connected(stack, gateway)
        dropped.hear()
        gateway.reload(site().replace("127.0.0.1:0", "127.0.0.2:0"))
        stopping = threading.Thread(target=gateway.stop)
        stopping.start()
        for client in (changed, dropped):
            assert client.hear().startswith(b"421")
            assert client.hear() == b""
        stopping.join(10)
        assert not stopping.is_alive()
