"""Limits that Reception keeps for all sessions together: connections by client and network, memory."""

import socket
from contextlib import ExitStack

import pytest

from gateway.counters import Counters
from gateway.decision import Defer
from gateway.envelope import Client
from gateway.errors import OutOfMemory
from gateway.message import IN_MEMORY, Memory, Spool
from gateway.plugin import Services
from gateway.queue import MemoryQueue
from gateway.reception import Reception
from gateway.services import Clock
from gateway.settings import Limits
from gateway.testing import Bench
from gateway.testing.fakes import FakeClock, FakeDns
from gateway.testing.running import Running

PROXIED = """\
listeners: !replace [{name: mx, protocol: smtp, address: "127.0.0.1:0", proxy: [127.0.0.1]}]
limits: {sessions_per_network: 2}
"""


@pytest.fixture
def limited(tmp_path):
    """Give `limited(**limits)`: a Reception, and what it emits."""

    def make(**limits):
        clock = FakeClock()
        services = Services(clock, FakeDns(), Counters(clock))
        bench = Bench(tmp_path, services)
        chain = bench.chain()
        settings = Limits(**limits)
        return Reception(lambda: chain, MemoryQueue(clock.time), services, lambda: settings, list), bench

    return make


async def connect(reception, *addresses):
    """Connect from each address; gives the reasons of refusals."""
    sessions = [reception.open("mx", "smtp", Client(ip), "192.0.2.1") for ip in addresses]
    said = [await reception.connect(session) for session in sessions]
    return sessions, [one.reason if isinstance(one, Defer) else "" for one in said]


@pytest.mark.parametrize(
    "addresses",
    [
        ["203.0.113.1", "203.0.113.2", "203.0.113.255"],
        ["2001:db8::1", "2001:db8:0:0:ffff::2", "2001:db8::3"],
    ],
)
async def test_a_network_has_so_many_sessions(limited, addresses):
    reception, bench = limited(sessions_per_network=2)
    sessions, said = await connect(reception, *addresses)
    assert said == ["", "", "sessions_per_network"]
    (told,) = bench.told("limit.exceeded")
    assert (told.limit, told.allowed, told.client_ip) == ("sessions_per_network", 2, addresses[2])
    reception.disconnect(sessions[0], "quit")
    await reception.drain()
    assert (await connect(reception, addresses[2]))[1] == [""]


async def test_other_networks_and_loopback_are_not_in_it(limited):
    reception, _ = limited(sessions_per_network=1)
    others = ["203.0.113.1", "203.0.114.1", "2001:db8::1", "2001:db8:0:1::1", *["127.0.0.1", "::1", ""] * 3]
    assert set((await connect(reception, *others))[1]) == {""}


async def test_a_refused_session_gives_back_what_it_took(limited):
    reception, _ = limited(sessions_per_client=5, sessions_per_network=1)
    sessions, _ = await connect(reception, *["203.0.113.1"] * 4)
    for session in sessions:
        reception.disconnect(session, "quit")
    await reception.drain()
    assert (await connect(reception, "203.0.113.1"))[1] == [""]


def test_a_server_sends_away_who_is_one_too_many_of_a_network(tmp_path):
    """A proxy names clients of two networks; loopback itself is none."""
    with Running(tmp_path, PROXIED, Clock(), FakeDns()) as gateway, ExitStack() as stack:

        def connect(ip):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=10))
            link.sendall(f"PROXY TCP4 {ip} 192.0.2.1 4000 25\r\n".encode())
            return link, link.recv(100)[:9]

        (first, *_), *others = [connect(f"203.0.113.{number}") for number in (1, 2, 3)]
        assert [said for _, said in others] == [b"220 mail.", b"421 4.7.0"]
        assert connect("203.0.114.1")[1] == b"220 mail."
        first.close()
        gateway.wait_for("session.closed", 2)
        assert connect("203.0.113.4")[1] == b"220 mail."


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("192.0.2.7", "192.0.2"),
        ("127.8.8.8", ""),
        ("::1", ""),
        ("", ""),
        ("2001:db8::1", "2001:0db8:0000:0000"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("::ffff:192.0.2.7", "192.0.2"),
        ("::ffff:c000:207", "192.0.2"),
    ],
)
def test_networks(ip, name):
    assert Client(ip).network == name


def test_an_ipv4_client_of_a_socket_for_both_families_is_one():
    assert (Client("::ffff:192.0.2.7").ip, Client("::FFFF:c000:207").prefix) == ("192.0.2.7", "192.0.2.7")


def test_without_room_in_memory_bodies_are_files_and_headers_are_refused(tmp_path):
    memory = Memory(lambda: 1000)
    full = Spool(tmp_path, memory=memory)
    full.write(b"a: b\n\n" + b"x" * 900)
    assert list(tmp_path.iterdir()) == []
    body = Spool(tmp_path, memory=memory)
    body.write(b"c: d\n\n" + b"y" * 900)
    assert len(list(tmp_path.iterdir())) == 1
    assert bytes(body.finish()) == b"c: d\n\n" + b"y" * 900
    header = Spool(tmp_path, memory=memory)
    with pytest.raises(OutOfMemory):
        header.write(b"e: " + b"z" * 900)
    for spool in (full, body, header):
        spool.discard()
        spool.discard()
    assert memory.take(1000)


def test_what_is_on_disk_takes_no_memory(tmp_path):
    memory = Memory(lambda: 2 * IN_MEMORY)
    spool = Spool(tmp_path, memory=memory)
    spool.write(b"a: b\n\n")
    for _ in range(8):
        spool.write(b"x" * (IN_MEMORY // 2))
    assert memory.take(2 * IN_MEMORY - 5)
    assert not memory.take(1)
    spool.discard()
