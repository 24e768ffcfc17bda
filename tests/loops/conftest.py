"""Gateways that send to each other: each a whole Worker in this process, with a state of its own."""

import asyncio
import os
import smtplib
from collections import Counter

import pytest

from gateway import journal
from gateway.listeners import open_sockets
from gateway.worker import Configuration, Worker

OWNER = os.geteuid() or 65534
CONF = """\
gateway: {{hostname: mx.{name}.example, state: var, postmaster: postmaster@{name}.example}}
listeners: [{{name: mx, protocol: smtp, address: "127.0.0.1:0"}}]
limits: {{hops: {hops}}}
relay_control: {{clients: [127.0.0.1]}}
rcpthosts: {{domains: [{name}.example]}}
virtual_domains: {{domains: {{{name}.example: abc}}}}
accounts: {{virtual: {{abc: {{home: home}}}}}}
remote: {{tls: none, routes: {{{routes}}}}}
"""
#: More than any test here should need; a loop that is not stopped comes to it within seconds.
STORM = 300


class Gateway:
    """`NAME.example`, whose mail goes to the account in `home`."""

    def __init__(self, base, name, hops):
        self.base, self.name, self.hops = base / name, name, hops
        (self.base / "conf.d").mkdir(parents=True)
        self.write("")
        self.sockets = open_sockets(self.load().settings.listeners)
        self.port = next(iter(self.sockets.values()))[0].getsockname()[1]
        self.home(default="./Maildir/\n")

    def home(self, **files):
        for part in ("tmp", "new", "cur"):
            (self.base / "home" / "Maildir" / part).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.base / "home" / f".qmail-{name.replace('_', '-')}").write_text(text)
        for path in (self.base / "home", *self.base.glob("home/**/*")):
            os.chown(path, OWNER, OWNER)

    def write(self, routes, more=""):
        text = CONF.format(name=self.name, hops=self.hops, routes=routes)
        check = "" if "recipient_check" in more else "recipient_check: {enabled: false}\n"
        (self.base / "conf.d" / "site.yaml").write_text(text + check + more)

    def load(self):
        return Configuration.load(self.base / "conf.d")

    async def start(self):
        self.worker = Worker(self.load(), self.sockets)
        await self.worker.start()
        self.running = True

    async def stop(self):
        if self.running:
            self.running = False
            await self.worker.stop()

    def send(self, recipient, sender="s@a.example"):
        """Hand one message in; gives the reply to its recipient."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=20) as client:
            client.ehlo("client.example")
            client.mail(sender)
            code, text = client.rcpt(recipient)
            if code == 250:
                assert client.data("Subject: the one\n\nbody\n")[0] == 250
            return code, text.decode()

    def events(self, name=""):
        found = journal.read(self.base / "var" / "journal")
        return [event for event in found if name in ("", event["event"])]

    def counts(self):
        """Count the messages that were born here, by origin."""
        return Counter(event["origin"] for event in self.events("message.accepted"))

    def mail(self):
        """Give the content of every message in the Maildir."""
        return [path.read_bytes() for path in (self.base / "home" / "Maildir" / "new").iterdir()]


class Sites:
    """Gateways that know the way to each other's domains."""

    def __init__(self, *gateways):
        self.gateways = gateways

    async def quiet(self):
        """Wait until no gateway has mail in its queue, or there is a storm."""
        before = None
        async with asyncio.timeout(40):
            while (now := await self._snapshot()) != before or now[0] != now[1]:
                assert now[0] < STORM, "a storm"
                before = now
                await asyncio.sleep(0.05)

    async def _snapshot(self):
        for one in self.gateways:
            await one.worker.journal.flush()
        accepted = sum(len(one.events("message.accepted")) for one in self.gateways)
        return accepted, sum(len(one.events("message.finished")) for one in self.gateways)

    async def send(self, gateway, recipient, **more):
        reply = await asyncio.to_thread(gateway.send, recipient, **more)
        await self.quiet()
        return reply


@pytest.fixture
async def sites(tmp_path):
    """Give `await sites(*names, routes={...}, more={...}, hops=20)`: running gateways."""
    running = []

    async def make(*names, routes=None, more=None, hops=20):
        made = {name: Gateway(tmp_path, name, hops) for name in names}
        for name, one in made.items():
            ways = {f"{other}.example": other for other in names if other != name}
            ways |= (routes or {}).get(name, {})
            text = ", ".join(f'{domain}: "127.0.0.1:{made[to].port}"' for domain, to in ways.items())
            one.write(text, (more or {}).get(name, ""))
            await one.start()
            running.append(one)
        return Sites(*made.values())

    yield make
    for one in running:
        await one.stop()
