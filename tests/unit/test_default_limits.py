"""What `limits:` lets pass and what it refuses where nothing is set: the numbers that the reference names."""

import asyncio
import re
from pathlib import Path

import pytest
from driven import begun

from gateway.authentication import login
from gateway.counters import Counters
from gateway.decision import Defer, Disconnect
from gateway.envelope import Client, Credentials
from gateway.errors import OutOfMemory
from gateway.plugin import Services
from gateway.queue import MemoryQueue
from gateway.reception import Reception
from gateway.settings import Limits
from gateway.testing import Bench, transaction
from gateway.testing.fakes import FakeClock, FakeDns

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
DOCUMENTED = {
    "message_size": "50M",
    "recipients": "1000",
    "sessions": "2000",
    "sessions_per_client": "50",
    "sessions_per_network": "200",
    "helo_required": "true",
    "syntax": "strict",
    "hops": "100",
    "bad_commands": "20",
    "auth_failures": "20",
    "commands": "10000",
    "idle": "5m",
    "session": "1h",
    "data_rate": "100",
    "memory": "64M",
    "bare_newlines": "refuse",
}
NAMED = Limits(**DOCUMENTED)
HELLO = b"EHLO client.example\r\n"
SENDER, RECIPIENT = b"MAIL FROM:<a@example.com>\r\n", b"RCPT TO:<b@example.org>\r\n"
ENVELOPE = SENDER + RECIPIENT + b"DATA\r\n"


def test_the_reference_names_these_and_each_is_shown_here():
    rows = r"^\| `limits\.(\w+)` \| [^`]* \| `([^`]*)` \|"
    assert dict(re.findall(rows, REFERENCE.read_text("utf-8"), re.MULTILINE)) == DOCUMENTED
    assert [name for name in DOCUMENTED if f"test_{name}" not in globals()] == []


class Skipping(asyncio.SelectorEventLoop):
    """A loop whose time a test moves on."""

    skipped = 0.0

    def time(self):
        return super().time() + self.skipped


class Talk:
    """One session with a server."""

    def __init__(self, folder, **limits):
        self.reception, self._wire, self._server, self._connection = begun(folder, **limits)

    async def say(self, *packets):
        """Say something; gives the replies to it, code and status of each."""
        for packet in packets:
            self._connection.data_received(packet)
            await self._settled()
        said, self._wire.said = self._wire.said, b""
        return [line[:9] for line in said.decode().splitlines() if line[3:4] == " "]

    async def after(self, seconds, packet=b""):
        """Let time pass, and then say something."""
        asyncio.get_running_loop().skipped += seconds
        await self._settled()
        return await self.say(packet)

    async def end(self):
        self._connection.eof_received()
        await self._server.close_gently()

    async def _settled(self):
        """Wait until the server waits."""
        quiet, before = 0, len(self._wire.said)
        while quiet < 10:
            await asyncio.sleep(0)
            quiet, before = (quiet + 1 if len(self._wire.said) == before else 0), len(self._wire.said)


@pytest.fixture
def talk(tmp_path):
    """Give `talk(steps, **limits)`: runs steps with a Talk behind EHLO, in a loop whose time they move."""

    def run(steps, **limits):
        async def whole():
            one = Talk(tmp_path, **limits)
            assert len(await one.say(HELLO)) == 2
            await steps(one)
            await one.end()

        with asyncio.Runner(loop_factory=Skipping) as runner:
            runner.run(whole())

    return run


class House:
    """A Reception and its logins, with the limits as they come."""

    def __init__(self, folder):
        clock = FakeClock()
        services = Services(clock, FakeDns(), Counters(clock))
        chain = Bench(folder, services).chain()
        self.queue = MemoryQueue(clock.time)
        self.reception = Reception(lambda: chain, self.queue, services, Limits, list)
        self.login = login.Login(self.reception, services, Limits, b"secret")

    def open(self, ip="192.0.2.7"):
        return self.reception.open("mx", "smtp", Client(ip), "192.0.2.1")

    async def connect(self, addresses):
        """Connect from each address; gives why each was refused."""
        said = [await self.reception.connect(self.open(ip)) for ip in addresses]
        return [one.reason if isinstance(one, Defer) else "" for one in said]


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def test_message_size(talk):
    async def steps(one):
        for size, reply in ((NAMED.message_size, "250 2.1.0"), (NAMED.message_size + 1, "552 5.3.4")):
            said = SENDER.replace(b"\r\n", b" SIZE=%d\r\n" % size)
            assert await one.say(said) == [reply]
            await one.say(b"RSET\r\n")

    talk(steps)


def test_recipients(talk):
    async def steps(one):
        await one.say(SENDER)
        said = await one.say(RECIPIENT * (NAMED.recipients + 1))
        assert set(said[:-1]) == {"250 2.1.5"}
        assert said[-1] == "452 4.5.3"

    talk(steps)


async def test_sessions(house):
    addresses = [f"198.{number // 256}.{number % 256}.1" for number in range(NAMED.sessions + 1)]
    *taken, last = await house.connect(addresses)
    assert (set(taken), last) == ({""}, "sessions")


async def test_sessions_per_client(house):
    *taken, last = await house.connect(["192.0.2.7"] * (NAMED.sessions_per_client + 1))
    assert (set(taken), last) == ({""}, "sessions_per_client")
    assert await house.connect(["192.0.2.8"]) == [""]


async def test_sessions_per_network(house):
    *taken, last = await house.connect([f"192.0.2.{one}" for one in range(NAMED.sessions_per_network + 1)])
    assert (set(taken), last) == ({""}, "sessions_per_network")
    assert await house.connect(["192.0.3.1"]) == [""]


def test_helo_required(tmp_path):
    async def whole():
        one = Talk(tmp_path)
        assert (await one.say(SENDER))[1:] == ["503 5.5.1"]
        await one.end()

    asyncio.run(whole())


def test_syntax(talk):
    async def steps(one):
        assert await one.say(SENDER, SENDER) == ["250 2.1.0", "503 5.5.1"]

    talk(steps)


@pytest.mark.parametrize(("more", "reply"), [(0, "554 5.4.6"), (-1, "250 2.0.0")])
def test_hops(talk, more, reply):
    async def steps(one):
        fields = b"Received: from a by b\r\n" * (NAMED.hops + more)
        assert (await one.say(ENVELOPE, fields + b"\r\n.\r\n"))[-1] == reply

    talk(steps)


def test_bad_commands(talk):
    async def steps(one):
        said = await one.say(b"NONSENSE\r\n" * (NAMED.bad_commands + 1))
        assert said == ["500 5.5.1"] * NAMED.bad_commands + ["421 4.7.0"]

    talk(steps)


async def test_auth_failures(house, monkeypatch):
    monkeypatch.setattr(login, "_LONGEST", 0)
    session = house.open()
    for _ in range(NAMED.auth_failures):
        assert await house.login.over(session) is None
        await house.login.check(session, Credentials("PLAIN", "ann", "guess"))
    assert isinstance(await house.login.over(session), Disconnect)
    assert await house.login.over(house.open("192.0.2.8")) is None


def test_commands(talk):
    async def steps(one):
        said = await one.say(b"NOOP\r\n" * NAMED.commands)
        # EHLO was the first.
        assert said == ["250 2.0.0"] * (NAMED.commands - 1) + ["421 4.7.0"]

    talk(steps)


def test_idle(talk):
    async def steps(one):
        assert await one.after(NAMED.idle - 1, b"NOOP\r\n") == ["250 2.0.0"]
        assert await one.after(NAMED.idle - 1) == []
        assert await one.after(2) == ["421 4.4.2"]

    talk(steps)


def test_session(talk):
    async def steps(one):
        for _ in range(20):
            assert await one.after(NAMED.session / 20 - 1, b"NOOP\r\n") == ["250 2.0.0"]
        assert await one.after(22, b"NOOP\r\n") == ["421 4.4.2"]

    talk(steps)


@pytest.mark.parametrize("rate", [NAMED.data_rate, 1000])
def test_data_rate(talk, rate):
    async def steps(one):
        await one.say(ENVELOPE)
        assert await one.after(29, b"x") == [], "for half a minute nobody is too slow"
        assert await one.after(1, b"x" * 50 * rate) == []
        assert await one.after(19, b"x") == []
        assert await one.after(2, b"x") == ["421 4.4.2"]

    talk(steps, **({} if rate == NAMED.data_rate else {"data_rate": rate}))


async def test_memory(house):
    await house.queue.open()
    assert house.reception._memory.take(NAMED.memory - 1000)
    spool = house.reception.spool(transaction())
    spool.write(b"a: " + b"x" * 900)
    with pytest.raises(OutOfMemory):
        spool.write(b"x" * 200)
    spool.discard()
    await house.queue.close()


def test_bare_newlines(talk):
    async def steps(one):
        assert (await one.say(ENVELOPE, b"a bare\nLF\r\n.\r\n"))[-1] == "550 5.5.2"

    talk(steps)
