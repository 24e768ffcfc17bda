"""Clients that take all they can: memory stays bounded, the right code is said, and others are served."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

MB = 2**20
#: What the whole gateway may grow by.
BOUND = 256 * MB
SLOW, GOOD, PATIENCE = 1000, 400, 120
pytestmark = pytest.mark.slow
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<u@example.org>\r\n"


def memory(gateway, field):
    """Give the memory of all processes of the gateway, in bytes."""
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            group = int(stat.read_text().rpartition(")")[2].split()[2])
            if group == gateway.process.pid:
                status = (stat.parent / "status").read_text()
                found += int(status.partition(f"{field}:")[2].split()[0]) * 1024
    return found


class Client:
    """A connection whose replies are read while it sends."""

    def __init__(self, port):
        self.port = port
        self.codes = []

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.task = asyncio.create_task(self._hear())
        await self.say(b"EHLO client.example\r\n")
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        await self.task

    async def _hear(self):
        with contextlib.suppress(ConnectionError):
            async for line in self.reader:
                if line[3:4] == b" ":
                    self.codes.append(line[:9].decode())

    async def say(self, data):
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def end(self):
        """Say QUIT and give all that was said: code and status."""
        await self.say(b"QUIT\r\n")
        await asyncio.wait_for(self.task, PATIENCE)
        return self.codes


async def recipients(client):
    await client.say(b"MAIL FROM:<a@example.com>\r\n")
    for start in range(0, 20_000, 1000):
        many = (b"RCPT TO:<u%d@example.org>\r\n" % number for number in range(start, start + 1000))
        await client.say(b"".join(many))


async def long_line(client):
    await client.say(b"NOOP ")
    for _ in range(160):
        await client.say(b"x" * (MB // 16))
    await client.say(b"\r\n")


async def many_headers(client):
    await client.say(ENVELOPE + b"DATA\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)))
    await client.say(b"\r\nbody\r\n.\r\n")


async def much_header(client):
    await client.say(ENVELOPE + b"DATA\r\n")
    for number in range(10_000):
        await client.say(b"X-%d: " % number + b"y" * 900 + b"\r\n")
    await client.say(b"\r\nbody\r\n.\r\n")


async def announced(client):
    await client.say(b"MAIL FROM:<a@example.com> SIZE=1073741824\r\n")


async def lied(client, verb=b"DATA\r\n", end=b"\r\n.\r\n"):
    await client.say(ENVELOPE.replace(b">\r\n", b"> SIZE=100\r\n", 1) + verb)
    block = (b"x" * 1022 + b"\r\n") * 1024
    for _ in range(1024):
        await client.say(block)
    await client.say(end)


async def lied_by_chunk(client):
    await lied(client, b"BDAT 1073741824\r\n", b"")


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (recipients, "452 4.5.3"),
        (long_line, "500 5.5.2"),
        (many_headers, "250 2.0.0"),
        (much_header, "552 5.3.4"),
        (announced, "552 5.3.4"),
        (lied, "552 5.3.4"),
        (lied_by_chunk, "552 5.3.4"),
    ],
)
async def test_memory_stays_bounded(gateway, numbers, attack, code):
    await gateway.start()
    before = memory(gateway, "VmRSS")
    async with Client(gateway.port) as client:
        await attack(client)
        said = await client.end()
    grown = memory(gateway, "VmHWM") - before
    numbers(attack.__name__, grown_mb=grown // MB, said=said[-2])
    assert code in said[3:] if attack is not announced and attack is not long_line else code in said[2:]
    assert grown < BOUND
    if attack is recipients:
        assert said.count("250 2.1.5") == 1000
        assert said[-1] == "421 4.7.0", "a session has so many commands"


async def drip(port, prefix, ended):
    """Open a session and send a byte every second."""
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO slow.example\r\n" + prefix)
        while not ended.is_set():
            writer.write(b"x")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 1)
        writer.transport.abort()
        reader.feed_eof()


async def times(port, many):
    """Send messages one after the other, each in a session of its own; give how long each took, sorted."""
    taken = []
    for _ in range(many):
        began = time.perf_counter()
        async with Client(port) as client:
            await client.say(ENVELOPE + b"DATA\r\n")
            await client.say(b"Subject: good\r\n\r\nbody\r\n.\r\n")
            said = await client.end()
        assert said[-2] == "250 2.0.0", said
        taken.append(time.perf_counter() - began)
    return sorted(taken)


async def test_slow_clients_do_not_slow_others(gateway, numbers):
    gateway.configure()
    site = gateway.base / "conf.d" / "site.yaml"
    site.write_text(site.read_text().replace("sessions_per_client: 200", "sessions_per_client: 1500"))
    gateway.own()
    await gateway.start()
    alone = await times(gateway.port, GOOD // 2)
    ended = asyncio.Event()
    prefixes = (b"", ENVELOPE + b"DATA\r\n", ENVELOPE + b"BDAT 1000000\r\n")
    slow = [asyncio.create_task(drip(gateway.port, prefixes[i % 3], ended)) for i in range(SLOW)]
    await asyncio.sleep(3)
    among = await times(gateway.port, GOOD)
    assert not any(task.done() for task in slow)
    ended.set()
    await asyncio.gather(*slow)
    p99 = [one[int(len(one) * 0.99)] for one in (alone, among)]
    numbers("p99 of good clients, ms", alone=round(p99[0] * 1000), among_slow=round(p99[1] * 1000))
    assert p99[1] < max(1.0, 3 * p99[0])
