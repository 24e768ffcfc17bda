"""A thousand local parts that mean harm: nothing is run, no path leaves the home, every refusal is clear."""

import asyncio
import contextlib
import hashlib
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from gateway import Address, Delivery, Entry, EntryRecipient, Message, Recipient, Stages, new_id, resolve
from gateway.journal import read
from gateway.listeners import open_sockets
from gateway.testing import Bench
from gateway.worker import Configuration, Worker

OWNER = os.geteuid() or 65534
COUNT = 1000
CONF = """\
virtual_domains: {domains: {example.org: abc}}
accounts: {virtual: {abc: {home: home}, other: {home: other}}}
"""
GATEWAY = """\
gateway: {hostname: mx.example.org, state: var, postmaster: kept@example.org}
listeners: [{name: mx, protocol: smtp, address: "127.0.0.1:0"}]
limits: {bad_commands: 100000, recipients: 10000}
rcpthosts: {domains: [example.org]}
"""
#: The message in a mailbox, the address as a program sees it, and one message on to another mailbox.
CONTROL = "./Maildir/\n|printf '%s\\0' \"$LOCAL\" >>seen\n&kept@example.org\n"
MAIL = b"Subject: hi\n\nbody\n"
HARM = [
    *["$(touch HIT)", "`touch HIT`", ";touch HIT;", "|touch HIT", "&touch HIT&", ">HIT", "<HIT", "2>&1"],
    *[
        "../",
        "/../../",
        "..",
        "./",
        "/etc/passwd",
        "/",
        "~/",
        "~root",
        "\\",
        "\\\\",
        "//",
        ".qmail",
        "%2e%2e/",
    ],
    *[
        "-",
        "--",
        "-rf",
        "--help",
        "-o",
        "*",
        "?",
        "[a-z]*",
        "{a,b}",
        "!",
        "!!",
        "#",
        "^",
        "=",
        "$HOME",
        "${IFS}",
    ],
    *["%s%n%x", "%", "'", '"', "''", "' OR 1=1 --", "\t", " ", "\x1b[31m", "\x7f", "\x01", "\x08", "\x0b"],
    *["é", "\u202e", "\udcff", "\udc80", "\U0001f4a5", "@", "a@b", "<", ">", "<>", ",", ":", "(x)", "[::1]"],
    *["default", "owner", "-default", "-owner", "EXT=x", "PATH=.", "LD_PRELOAD=x", "() { :;}; touch HIT"],
    *["A" * 60, "x" * 255, "-" * 120, "/" * 100, "a" * 700],
]
CONTROLS = ["\n", "\r", "\r\n", "\0", "\n.\n", "\r\nRCPT TO:<x@evil.example>\r\n", "\nBcc: v@evil.example\n"]


def local_parts(harm, longest):
    """Make COUNT of them, always the same ones."""
    chance = random.Random(32)
    found = dict.fromkeys(harm)
    while len(found) < COUNT:
        pieces = [chance.choice([*harm, "joe", "a"]) for _ in range(chance.randrange(1, 5))]
        found["".join(pieces)] = None
    return [one for one in found if len(os.fsencode(one)) <= longest]


class Home:
    """The account's home, its neighbour, and what the tree was like before."""

    def __init__(self, base, control=CONTROL):
        self.base = base
        for name in ("home", "other"):
            (base / name).mkdir(mode=0o755)
        for folder in ("Maildir", "Kept"):
            for part in ("", "new", "cur", "tmp"):
                (base / "home" / folder / part).mkdir(mode=0o700)
        (base / "home" / ".qmail-default").write_text(control)
        (base / "home" / ".qmail-kept").write_text("./Kept/\n")
        (base / "other" / ".qmail-default").write_text("|touch HIT\n")
        for path in (base, *base.rglob("*")):
            os.chown(path, OWNER, OWNER)
        self.before = self.tree()

    def tree(self):
        """Give every path below the base, and what is in it; mailboxes, `seen` and the state are let out."""
        ours = re.compile(r"home/(Maildir|Kept)/|home/seen$|var(/|$)|plugins/__pycache__")
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else str(path.stat().st_mode)
            for path in self.base.rglob("*")
            if not ours.match(name := str(path.relative_to(self.base)))
        }

    def check(self):
        """Nothing was made, changed or taken away anywhere but in the mailboxes, and nothing odd there."""
        assert self.tree() == self.before
        assert not list(Path.cwd().glob("*HIT*"))
        for folder in ("Maildir", "Kept"):
            for path in (self.base / "home" / folder).rglob("*"):
                assert path.is_dir() or re.fullmatch(r"[0-9A-Za-z.:,_-]+", path.name)

    def mail(self, folder):
        return [path.read_bytes() for path in (self.base / "home" / folder / "new").iterdir()]

    def seen(self):
        """Give what programs found in $LOCAL."""
        path = self.base / "home" / "seen"
        return [os.fsdecode(one) for one in path.read_bytes().split(b"\0")[:-1]] if path.exists() else []


def fields(mail):
    """Give the names of a message's header fields."""
    return [line.partition(b":")[0] for line in mail.partition(b"\n\n")[0].split(b"\n") if line[:1].strip()]


async def test_through_dot_qmail(tmp_path):
    home = Home(tmp_path)
    made = Bench(tmp_path).build(CONF)
    home.before = home.tree()
    parts = local_parts([*HARM, *CONTROLS, "y" * 5000], 10_000)
    at_once = asyncio.Semaphore(20)

    async def deliver(local):
        (routed,) = await resolve(made.chain, Recipient.of(f"{local}@example.org"))
        one = EntryRecipient(1, routed.recipient, route=routed.route)
        entry = Entry(new_id(), Address("s@example.com"), Message.parse(MAIL), [one], time.time())
        delivery = Delivery(new_id(), entry, routed.route, (one,), entry.sender)
        async with at_once:
            answer = await made.chain.ask_plugin("dot_qmail", Stages.deliver, delivery)
        assert not answer.failed, local
        return answer.value[0]

    outcomes = dict(zip(parts, await asyncio.gather(*map(deliver, parts)), strict=True))
    home.check()
    delivered = [local for local, outcome in outcomes.items() if outcome.result == "delivered"]
    # Nothing that has a NUL can stand in an environment; all else is an address like another.
    assert set(outcomes) - set(delivered) == {local for local in parts if "\0" in local}
    assert len(delivered) > COUNT * 0.9
    assert Counter(home.seen()) == Counter(f"abc-{local}" for local in delivered)
    for mail in home.mail("Maildir"):
        assert fields(mail) == [b"Return-Path", b"Delivered-To", b"Subject"]
    for local, outcome in outcomes.items():
        if local in delivered:
            (birth,) = outcome.births
            assert birth.recipients == ("kept@example.org",)
            assert fields(bytes(birth.message)) == [b"Delivered-To", b"Subject"]
        else:
            assert (outcome.result, outcome.status, outcome.births) == ("deferred", "4.3.0", ())
            assert outcome.text


@contextlib.asynccontextmanager
async def gateway(base):
    (base / "conf.d").mkdir()
    (base / "conf.d" / "site.yaml").write_text(GATEWAY + CONF)
    configuration = Configuration.load(base / "conf.d")
    sockets = open_sockets(configuration.settings.listeners)
    worker = Worker(configuration, sockets)
    await worker.start()
    worker.port = next(iter(sockets.values()))[0].getsockname()[1]
    try:
        yield worker
    finally:
        await worker.stop()


REPLY = re.compile(rb"[2345]\d\d[ -][ -~]*\r\n")


async def reply(reader):
    """Read one reply; each of its lines is what a reply may be, and tells nothing of the inside."""
    while True:
        line = await asyncio.wait_for(reader.readline(), 20)
        assert REPLY.fullmatch(line), line
        assert not re.search(rb"Traceback|Error|/home|\.py|\.qmail", line), line
        if line[3:4] == b" ":
            return line.decode()


async def session(worker, *commands):
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    await reply(reader)
    for command in ("EHLO client.example", "MAIL FROM:<s@example.com> SMTPUTF8", *commands):
        writer.write(os.fsencode(f"{command}\r\n"))
        assert (await reply(reader)).startswith("250")
    return reader, writer


async def finished(worker):
    async with asyncio.timeout(50):
        while await worker.queue.stats():  # noqa: ASYNC110 - the queue sets no event
            await asyncio.sleep(0.1)


REFUSALS = {
    "553 5.6.7 the address is not UTF-8\r\n",
    "553 5.7.1 relaying denied\r\n",
    "501 5.1.3 a recipient needs an address\r\n",
    "501 5.1.3 syntax: TO:<address>\r\n",
    "555 5.5.4 parameter not recognised\r\n",
    "501 5.1.3 the address holds a control character\r\n",
    "501 5.1.3 a domain is missing behind the @\r\n",
}


@pytest.mark.parametrize("quoted", [True, False])
async def test_through_rcpt_and_delivery(tmp_path, quoted):
    home = Home(tmp_path)
    accepted, refused = [], {}
    async with gateway(tmp_path) as worker:
        home.before = home.tree()
        reader, writer = await session(worker)
        for local in local_parts(HARM, 850):
            address = Address(f"{local}@example.org")
            writer.write(b"RCPT TO:<" + os.fsencode(address.quoted() if quoted else address) + b">\r\n")
            said = await reply(reader)
            if said.startswith("250"):
                accepted.append(local)
            else:
                refused[local] = said
        writer.write(b"DATA\r\n")
        assert (await reply(reader)).startswith("354")
        writer.write(b"Subject: hi\r\n\r\nbody\r\n.\r\nQUIT\r\n")
        assert (await reply(reader)).startswith("250")
        writer.close()
        await finished(worker)
    home.check()
    assert len(accepted) > COUNT * 0.5
    assert set(refused.values()) <= REFUSALS
    names = {b"Return-Path", b"Delivered-To", b"Received", b"Date", b"Message-ID", b"Subject"}
    for mail in home.mail("Maildir") + home.mail("Kept"):
        assert set(fields(mail)) <= names, mail
    assert len(home.mail("Maildir")) == len(home.mail("Kept")) == len(home.seen())
    if quoted:
        # Quoted well, each is exactly the address that was meant; only what is no text is refused.
        assert set(refused.values()) == {
            "553 5.6.7 the address is not UTF-8\r\n",
            "501 5.1.3 the address holds a control character\r\n",
        }
        assert Counter(home.seen()) == Counter(f"abc-{local}" for local in accepted)


async def test_control_characters_in_rcpt(tmp_path):
    home = Home(tmp_path)
    async with gateway(tmp_path) as worker:
        home.before = home.tree()
        for control in CONTROLS:
            for local in (f"a{control}b", f'"a\\{control}b"', f'"a{control}b"', control):
                reader, writer = await session(worker)
                writer.write(os.fsencode(f"RCPT TO:<{local}@example.org>\r\nQUIT\r\n"))
                said = [await reply(reader)]
                while not said[-1].startswith(("221", "421")):
                    said.append(await reply(reader))
                assert not any(one.startswith("250") for one in said), (local, said)
                writer.close()
        await worker.journal.flush()
        told = list(read(tmp_path / "var" / "journal"))
        assert not [event for event in told if event["event"] == "recipient.accepted"]
        assert len([event for event in told if event["event"] == "command.refused"]) >= 4 * len(CONTROLS)
    home.check()
    assert home.seen() == []
