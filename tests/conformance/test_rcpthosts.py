"""The group `rcpthosts` of the vectors: what qmail-smtpd answered, and what it queued.

Each case talks to a real server over TCP, with the bundled plugins and the case's control directory.
Where the client comes from is what tcpserver would have said; QMAILQUEUE's exit is a plugin's decision.
"""

import asyncio
import hashlib
import re

import pytest
import structlog
import vectors

from gateway.controls import parse_list
from gateway.counters import Counters
from gateway.errors import ConfigError
from gateway.loader import Loader
from gateway.plugin import Services, Site
from gateway.queue import Filter, MemoryQueue
from gateway.reception import Reception
from gateway.services import Clock
from gateway.settings import Listener, Settings
from gateway.settings.tree import Tree
from gateway.smtp import Server
from gateway.smtp.tls import Certificates
from gateway.testing.cdb import make_cdb
from gateway.testing.fakes import FakeDns

#: What qmail had and we default otherwise.
MX = Listener(protocol="smtp", address="127.0.0.1:25", name="mx")
SETTINGS = """
qmail_control: control
received: {format: qmail}
recipient_check: {enabled: false}
sqlite_queue: {enabled: false}
relay_control: {rules: tcp.smtp}
limits: {syntax: liberal, helo_required: false, bad_commands: 100000, recipients: 100000}
recorder: {before: [relay_control]}
"""
RECORDER = """
from gateway import Defer, Plugin, Reject, Section, hookimpl
from gateway.queue import MemoryQueue

PERMANENT = {11: "5.1.3", 115: "5.1.3"} | {code: "5.3.0" for code in range(12, 41)}
TEMPORARY = {72: "4.4.1", 73: "4.4.1", 74: "4.4.2"}

class Settings(Section):
    ip: str = ""
    name: str = ""
    exit: int = 0

class Recorder(Plugin[Settings]):
    @hookimpl
    def connect(self, session):
        session.client.ip, session.client.name = self.settings.ip, self.settings.name

    @hookimpl
    def message(self, transaction, message):
        code = self.settings.exit
        if code in PERMANENT:
            return Reject(PERMANENT[code], "refused")
        return Defer(TEMPORARY.get(code, "4.3.0"), "failed") if code else None

    @hookimpl
    def open_queue(self):
        return MemoryQueue(self.clock.time)
"""
DATE = re.compile(r"\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d -0000", re.ASCII)


def write_control(control, folder):
    for name, content in control.items():
        raw = vectors.raw(content)
        (folder / name).write_bytes(raw)
        if name == "morercpthosts":
            keys = [line.lower().encode() for _, line in parse_list(raw.decode())]
            (folder / "morercpthosts.cdb").write_bytes(make_cdb((key, b"") for key in keys))


def write_rules(env, path):
    """Write what tcpserver's rule would have to be for this environment."""
    names = [name for name in ("RELAYCLIENT", "DATABYTES") if name in env]
    path.write_text(":allow" + "".join(f',{name}="{env[name]}"' for name in names) + "\n")


async def talk(address, data):
    """Send all there is, hang up our side, and read to the end."""
    reader, writer = await asyncio.open_connection(*address)
    heard = asyncio.create_task(reader.read())
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    try:
        return await heard
    except ConnectionError:
        return b""
    finally:
        writer.close()


def replies_of(heard):
    """Give (code, enhanced status or None, texts) of each reply."""
    found, texts = [], []
    for line in heard.decode("utf-8", "surrogateescape").split("\r\n")[:-1]:
        texts.append(line[4:])
        if line[3:4] != "-":
            status = re.match(r"([245]\.\d+\.\d+) ", line[4:])
            found.append((line[:3], status and status[1], texts))
            texts = []
    return found


class Gateway:
    """A server with the case's settings, on a port of its own."""

    def __init__(self, case, folder):
        given, env = case["input"], case["input"]["env"]
        (folder / "control").mkdir()
        (folder / "plugins").mkdir()
        write_control(given["control"], folder / "control")
        write_rules(env, folder / "tcp.smtp")
        (folder / "plugins" / "recorder.py").write_text(RECORDER)
        client = {"ip": env.get("TCPREMOTEIP", ""), "name": env.get("TCPREMOTEHOST", "")}
        recorder = {**client, "exit": given.get("queue_exit", 0)}
        texts = {"conf.d/10.yaml": SETTINGS, "conf.d/20.yaml": vectors.json.dumps({"recorder": recorder})}
        self.tree = Tree.parse(texts, folder)
        self.settings = Settings.of(self.tree)
        self.folder = folder

    async def start(self):
        clock = Clock()
        services = Services(clock, FakeDns(), Counters(clock))
        gateway = self.settings.gateway
        site = Site(gateway.hostname, gateway.postmaster, self.folder / "state", self.folder, 604800.0)
        loader = Loader(services, lambda _event: None, structlog.get_logger)
        self.generation = loader.build(self.tree, site, [self.folder / "plugins"], Settings.names())
        self.queue = MemoryQueue(clock.time)
        await self.queue.open()
        limits = self.settings.limits
        reception = Reception(
            lambda: self.generation.chain, self.queue, services, lambda: limits, lambda: None
        )
        loop = asyncio.get_running_loop()
        server = Server(reception, limits, gateway.greeting, MX, loop, None, Certificates(self.settings.tls))
        self.listening = await loop.create_server(server, "127.0.0.1", 0)
        return self.listening.sockets[0].getsockname()

    async def queued(self):
        entries = await self.queue.list(Filter())
        return [await self.queue.get(entry.id) for entry in entries]

    async def stop(self):
        self.listening.close()
        await self.queue.close()


def recorded(entry, *, summed):
    content = DATE.sub("@DATE@", bytes(entry.message).decode("utf-8", "surrogateescape"), count=1)
    raw = content.encode("utf-8", "surrogateescape")
    message = (
        {"sha256": hashlib.sha256(raw).hexdigest(), "length": len(raw)} if summed else vectors.as_text(raw)
    )
    return {
        "sender": vectors.as_text(bytes(entry.sender)),
        "recipients": [vectors.as_text(bytes(one.recipient.address)) for one in entry.recipients],
        "message": message,
    }


async def play(case, folder):
    gateway = Gateway(case, folder)
    address = await gateway.start()
    try:
        data = vectors.raw(case["input"]["input"])
        data = data.replace(b"@@FILL@@", b"x" * case["input"].get("repeat", 0))
        replies = replies_of(await talk(address, data))
        queued = [recorded(one, summed="repeat" in case["input"]) for one in await gateway.queued()]
    finally:
        await gateway.stop()
    greetings = [texts for code, _, texts in replies if code == "250" and len(texts) > 1]
    return {
        "exit": 0 if replies[-1][0] == "221" else 1,
        "replies": [[code, status] for code, status, _ in replies],
        "banner": replies[0][2][0] if replies[0][0] == "220" else None,
        "ehlo": {line for texts in greetings for line in texts[1:]},
        "queued": queued,
    }


def compared(found, expect):
    """Drop the enhanced codes that qmail did not give, and the extensions that only we have."""
    if len(found["replies"]) == len(expect["replies"]):
        pairs = zip(found["replies"], expect["replies"], strict=True)
        found["replies"] = [[code, wanted and status] for (code, status), (_, wanted) in pairs]
    found["ehlo"] &= set(expect.get("ehlo", ()))
    return found, {**expect, "ehlo": set(expect.get("ehlo", ()))}


@pytest.mark.parametrize("case", vectors.cases("rcpthosts"))
async def test_rcpthosts(case, tmp_path, request):
    try:
        found = await play(case, tmp_path)
    except ConfigError as error:
        found = {"refused": str(error), "replies": [], "ehlo": set()}
    found, expect = compared(found, case["expect"])
    vectors.compare(request, "rcpthosts", case, found, expect)
