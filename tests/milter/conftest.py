"""Gateways in this process with real plugin files, and an MTA that speaks milter to them."""

import asyncio
import os
import struct
from contextlib import asynccontextmanager

import pytest

from gateway.milter import packets as p
from gateway.milter import wire
from gateway.milter.packets import ALL_ACTIONS, Steps
from gateway.worker import Configuration, Worker

CONF = """
gateway: {{hostname: mx.example, state: var}}
listeners:
  - {{name: mx, protocol: smtp, address: "unix:{folder}/smtp"}}
  - {{name: policy, protocol: milter, address: "unix:{folder}/milter"}}
plugins: {{folders: [plugins]}}
relay_control: {{clients: [127.0.0.0/8]}}
rcpthosts: {{domains: [example.org]}}
virtual_domains: {{domains: {{example.org: abc}}}}
accounts: {{virtual: {{abc: {{home: home, uid: {uid}}}}}}}
"""


OWNER = 65534 if os.geteuid() == 0 else os.geteuid()


class Mta:
    """The MTA's side of one session, packet by packet."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.decoder = wire.Decoder(wire.ANSWERS)
        self.agreed = None
        #: Asked for nothing by default, so that every answer is seen.
        self.edits = []

    async def negotiate(self, actions=ALL_ACTIONS, steps=Steps.LEADING_SPACE | Steps.SKIP, version=6):
        self.agreed = await self.ask(p.Negotiate(version, actions, steps))
        return self.agreed

    def send(self, *commands):
        self.writer.write(b"".join(map(wire.encode, commands)))

    async def answer(self):
        """Give the next answer that is no Progress; None when the connection is closed."""
        while True:
            packet = self.decoder.next_packet()
            if packet is None:
                data = await asyncio.wait_for(self.reader.read(65536), 10)
                if not data:
                    return None
                self.decoder.receive(data)
            elif not isinstance(packet, p.Progress):
                return packet

    async def ask(self, *commands):
        self.send(*commands)
        return await self.answer()

    async def begin(self, ip=b"203.0.113.9", helo=b"client.example", host=b"client.example"):
        await self.negotiate()
        connect = await self.ask(p.Connect(host, b"6" if b":" in ip else b"4", 4711, ip))
        return connect, await self.ask(p.Helo(helo))

    async def envelope(self, sender=b"<s@remote.example>", recipients=(b"<abc@example.org>",)):
        answers = [await self.ask(p.Mail(sender))]
        return answers + [await self.ask(p.Rcpt(recipient)) for recipient in recipients]

    async def content(self, headers=((b"Subject", b" hi"),), body=b"text\r\n", chunk=50_000):
        """Send the content; gives the verdict, and `edits` holds what came before it."""
        assert await self.ask(p.Data()) == p.Continue()
        for name, value in headers:
            assert await self.ask(p.Header(name, value)) == p.Continue()
        assert await self.ask(p.EndOfHeaders()) == p.Continue()
        for start in range(0, len(body), chunk):
            assert await self.ask(p.Body(body[start : start + chunk])) == p.Continue()
        return await self.verdict(p.EndOfMessage())

    async def verdict(self, *commands):
        self.send(*commands)
        self.edits = []
        while True:
            answer = await self.answer()
            if answer is None or isinstance(answer, p.Verdict):
                return answer
            self.edits.append(answer)

    def close(self):
        self.writer.close()


class Site:
    """A worker with a milter and an SMTP listener; `emitted` keeps its events."""

    def __init__(self, folder):
        self.folder = folder
        self.emitted, self.mtas = [], []

    async def start(self, yaml, plugins):
        (self.folder / "conf.d").mkdir()
        (self.folder / "plugins").mkdir()
        (self.folder / "home").mkdir()
        (self.folder / "home" / ".qmail-default").write_text("./Maildir/\n")
        for path in (self.folder / "home", self.folder / "home" / ".qmail-default"):
            os.chown(path, OWNER, -1)
        (self.folder / "conf.d" / "10.yaml").write_text(CONF.format(folder=self.folder, uid=OWNER))
        (self.folder / "conf.d" / "20.yaml").write_text(yaml)
        for stem, source in plugins.items():
            (self.folder / "plugins" / f"{stem}.py").write_text(source)
        self.worker = Worker(Configuration.load(self.folder / "conf.d", self.folder))
        await self.worker.start()
        emit = self.worker.journal.emit

        def keep(event):
            self.emitted.append(event)
            emit(event)

        self.worker.generation.chain._emit = keep

    def told(self, name):
        return [event for event in self.emitted if name == event.NAME]

    async def mta(self):
        self.mtas.append(Mta(*await asyncio.open_unix_connection(self.folder / "milter")))
        return self.mtas[-1]

    async def stop(self):
        for mta in self.mtas:
            mta.close()
        await self.worker.stop()

    @asynccontextmanager
    async def smtp(self):
        reader, writer = await asyncio.open_unix_connection(self.folder / "smtp")
        try:
            yield Smtp(reader, writer)
        finally:
            writer.close()


class Smtp:
    """A client that says a line and gives the reply's first line."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def reply(self):
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 10)).decode().rstrip()
            if line[3:4] != "-":
                return line

    async def say(self, line):
        self.writer.write(line.encode() + b"\r\n")
        return await self.reply()


@pytest.fixture
def not_started(tmp_path):
    """Give a gateway for a loop of the test's own."""
    return Site(tmp_path)


@pytest.fixture
async def site(tmp_path):
    """Give `await site(yaml, **plugins)`: a gateway of its own."""
    made = []

    async def make(yaml="", **plugins):
        one = Site(tmp_path)
        await one.start(yaml, plugins)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.stop()


def packed(code, data=b""):
    return struct.pack(">I", len(data) + 1) + code + data
