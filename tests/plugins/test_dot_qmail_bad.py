"""Homes, files and programs that are not as they should be: qmail's exit class, a reason, and no mail lost.

Each case runs in a whole gateway, from RCPT to the journal.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import smtplib
import tempfile
import time
from pathlib import Path

import pytest

from gateway.journal import read
from gateway.listeners import open_sockets
from gateway.queue import Filter
from gateway.worker import Configuration, Worker

OWNER = os.geteuid() or 65534
CONF = """\
gateway: {hostname: mx.example.org, state: var, postmaster: postmaster@example.org}
listeners: [{name: mx, protocol: smtp, address: "127.0.0.1:0"}]
rcpthosts: {domains: [example.org]}
virtual_domains: {domains: {example.org: abc}}
accounts: {virtual: {abc: {home: home}}}
dot_qmail: {program_time: 1s}
"""
NO_CHECK = "recipient_check: {enabled: false}\n"
#: More than a pipe holds.
LONG = "Subject: hi\r\n\r\n" + "line\r\n" * 50_000
ENDS = {"delivery.delivered", "delivery.deferred", "delivery.failed"}


class Site:
    """One account, and a gateway that delivers to it."""

    def __init__(self, base, port, worker):
        self.base, self.home, self.port, self.worker = base, base / "home", port, worker

    def file(self, text, mode=0o644):
        path = self.home / ".qmail-a"
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)

    async def send(self, content="Subject: hi\r\n\r\nbody\r\n", sender=""):
        """Send to a@; gives 250, or code and text of the reply that refused."""

        def talk():
            with smtplib.SMTP("127.0.0.1", self.port, timeout=20) as client:
                client.ehlo()
                client.mail(sender)
                code, text = client.rcpt("a@example.org")
                return client.data(content)[0] if code == 250 else (code, text.decode())

        return await asyncio.to_thread(talk)

    async def events(self, *names):
        await self.worker.journal.flush()
        return [event for event in read(self.base / "var" / "journal") if event["event"] in names]

    async def end(self, count=1):
        """Wait for the end of an attempt; gives its event."""
        async with asyncio.timeout(20):
            while len(found := await self.events(*ENDS)) < count:  # noqa: ASYNC110 - the journal's writer is a thread
                await asyncio.sleep(0.02)
        return found[count - 1]

    async def again(self):
        """Let the next attempt come at once; gives how it ended."""
        count = len(await self.events(*ENDS))
        await self.worker.queue.retry(Filter())
        self.worker.dispatchers[0].wake()
        return await self.end(count + 1)

    async def holds(self, *wanted):
        """Wait until the queue holds this: an event is on disk before the queue knows."""
        async with asyncio.timeout(20):
            while [(one.state, one.recipients) for one in await self.worker.queue.stats()] != [*wanted]:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)


@pytest.fixture
def base():
    """Give a folder below which we are nobody, as root sees no closed doors; and be nobody."""
    base = Path(tempfile.mkdtemp(prefix="mailward-bad-"))
    for part in ("", "Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur"):
        (base / "home" / part).mkdir(mode=0o755)
    (base / "conf.d").mkdir()
    for path in (base, *base.rglob("*")):
        os.chown(path, OWNER, OWNER)
    us = os.geteuid()
    os.setresuid(OWNER, OWNER, us)
    yield base
    os.setresuid(us, us, us)
    shutil.rmtree(base)


@pytest.fixture
async def start(base):
    """Give `await start(yaml)`: the running site."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(more=NO_CHECK):
            (base / "conf.d" / "site.yaml").write_text(CONF + more)
            configuration = Configuration.load(base / "conf.d")
            sockets = open_sockets(configuration.settings.listeners)
            worker = Worker(configuration, sockets)
            await worker.start()
            stack.push_async_callback(worker.stop)
            return Site(base, next(iter(sockets.values()))[0].getsockname()[1], worker)

        yield make


def control(text, mode=0o644):
    return lambda site: site.file(text, mode)


def home(mode):
    def change(site):
        site.file("./Maildir/\n")
        site.home.chmod(mode)

    return change


def folder_of_nobody_else(site):
    site.file("./Maildir/\n")
    (site.home / "Maildir").chmod(0)


SOFT = {
    "unreadable file": (control("./Maildir/\n", 0), "4.3.0", "a .qmail file cannot be read"),
    "file for everybody to write": (control("./Maildir/\n", 0o646), "4.7.0", "writable for everybody"),
    "sticky home": (home(0o1755), "4.2.1", "the account's home is sticky"),
    "home for everybody to write": (home(0o757), "4.7.0", "home is writable for everybody"),
    "closed home": (home(0o600), "4.3.0", "the account's home cannot be entered"),
    "closed Maildir": (folder_of_nobody_else, "4.2.1", "the Maildir cannot be entered"),
    "blank first line": (control("\n./Maildir/\n"), "4.2.1", "the first line of a .qmail file is blank"),
    "file line where only forwards are": (control("+list\n./Maildir/\n"), "4.7.0", "only forwards"),
    "program in an executable file": (control("|true\n", 0o744), "4.7.0", "only forwards"),
    "program that hangs": (control("|sleep 600\n"), "4.3.0", "a program took too long and was ended"),
    "program that hangs and is deaf": (
        control("|trap '' TERM INT HUP; sleep 600\n"),
        "4.3.0",
        "took too long",
    ),
    "program that is killed": (control("|kill -9 $$\n"), "4.3.0", "a program was killed by a signal"),
    "program that dies of a pipe": (control("|kill -PIPE $$\n"), "4.3.0", "killed by a signal"),
    "program that is not there": (control("|/no/such/program\n"), "", "not found"),
    "program that says 1": (control("|echo not today; exit 1\n"), "", "not today"),
    "program that says 67": (control("|echo no user; exit 67\n"), "", "no user"),
    "100 MB, then 111": (control("|head -c 100M /dev/zero | tr '\\0' x; exit 111\n"), "", "xxxx"),
}


@pytest.mark.parametrize("case", SOFT)
async def test_for_now_the_message_is_kept_and_arrives_once_it_is_mended(start, case):
    spoil, status, text = SOFT[case]
    site = await start()
    spoil(site)
    assert await site.send() == 250
    event = await site.end()
    assert (event["event"], event.get("status", "")) == ("delivery.deferred", status)
    assert text in event["text"]
    assert len(event["text"]) < 3200
    assert event["plugin"] == "dot_qmail"
    await site.holds(("queued", 1))
    site.home.chmod(0o755)
    (site.home / "Maildir").chmod(0o755)
    assert [*(site.home / "Maildir" / "tmp").iterdir(), *(site.home / "Maildir" / "new").iterdir()] == []
    site.file("./Maildir/\n")
    assert (await site.again())["event"] == "delivery.delivered"
    (mail,) = (site.home / "Maildir" / "new").iterdir()
    assert mail.read_bytes().endswith(b"Subject: hi\n\nbody\n")
    await site.holds()


HARD = {
    "program that says 100": ("|echo go away '(#5.7.9)'; exit 100\n", "5.7.9", "go away"),
    "program that says 77": ("|exit 77\n", "", "a program failed"),
    "100 MB, then 100": ("|head -c 100M /dev/zero | tr '\\0' x; exit 100\n", "", "xxxx"),
}


@pytest.mark.parametrize("case", HARD)
async def test_for_good_the_sender_hears_why(start, case):
    text, status, said = HARD[case]
    site = await start()
    site.file(text)
    (site.home / ".qmail-s").write_text("./Maildir/\n")
    assert await site.send(sender="s@example.org") == 250
    event = await site.end()
    assert (event["event"], event.get("status", "")) == ("delivery.failed", status)
    assert said in event["text"]
    await site.end(2)
    (bounce,) = (site.home / "Maildir" / "new").iterdir()
    assert said.encode() in bounce.read_bytes()
    assert bounce.stat().st_size < 10_000
    assert [one["recipients"] for one in await site.events("message.bounced")] == [["a@example.org"]]


DONE = {
    "100 MB and well": "|head -c 100M /dev/zero | tr '\\0' x\n",
    "program that closes its input": "|exec <&-; sleep 0.1\n",
    "program that does not read": "|true\n",
    "program that reads a little": "|head -c 10 >/dev/null\n",
    "program that closes its output": "|exec >&- 2>&-; sleep 0.1\n",
    "program that leaves a child behind": "|sleep 5 &\n",
    "unknown directive": "+frobnicate\n",
    "nothing but comments": "# nobody\n",
    "program that is done with it": "|exit 99\n/no/such/folder/\n",
}


@pytest.mark.parametrize("case", DONE)
async def test_what_qmail_takes_for_done_is_done(start, case):
    site = await start()
    site.file(DONE[case])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert await site.send(LONG) == 250
    event = await site.end()
    assert event["event"] == "delivery.delivered"
    assert "did 0+0+" in event["text"]
    assert len(event["text"]) < 3200
    assert time.monotonic() - began < 4
    # In KiB; a program's output is never whole in memory.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    await site.holds()


@pytest.mark.parametrize(
    "case", ["unreadable file", "sticky home", "home for everybody to write", "closed home"]
)
async def test_at_rcpt_a_doubt_is_a_deferral_that_keeps_the_reason_to_itself(start, case):
    site = await start("")
    spoil, _, text = SOFT[case]
    spoil(site)
    assert await site.send() == (451, "4.3.0 cannot look this recipient up now, try again later")
    (refused,) = await site.events("recipient.refused")
    assert refused["reason"] == "recipient_doubt"
    (failed,) = await site.events("plugin.failed")
    assert (failed["plugin"], failed["stage"]) == ("dot_qmail", "exists")
    assert text in failed["error"]


async def test_an_unknown_instruction_is_an_address_that_goes_nowhere_and_bounces(start):
    site = await start()
    site.file("frobnicate this\n")
    (site.home / ".qmail-s").write_text("./Maildir/\n")
    assert await site.send(sender="s@example.org") == 250
    await site.end(3)
    (bounce,) = (site.home / "Maildir" / "new").iterdir()
    assert b"<frobnicate this@" in bounce.read_bytes()
