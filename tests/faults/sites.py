"""A site that is killed at named steps, mail of every kind for it, and where each must be at the end."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import orjson
from killable import Gateway
from traffic import Load, Sink, text, token_of

CHILD = Path(__file__).with_name("child.py")
FILES = {
    "default": "./Maildir/\n",
    "sent-on": "&box@example.org\n",
    "many-default": "./Many/\n",
    "file": "./mbox\n",
    "run": "|grep '^X-Token: ' >> ran\n",
    "fail": "|exit 100\n",
}
MORE = """\
queue: {concurrency: {local: 4, remote: 4}}
locals: {domains: [mail.example.org]}
aliases: {names: {team: [box@example.org, far@example.net]}}
"""
#: Kind -> its recipients, and where each of its messages must be at the end.
KINDS = {
    "local": (["box@example.org"], ["Maildir"]),
    "remote": (["far@example.net"], ["sink"]),
    "both": (["box@example.org", "far@example.net"], ["Maildir", "sink"]),
    "big": (["box@example.org", "far@example.net"], ["Maildir", "sink"]),
    "forward": (["sent-on@example.org"], ["Maildir"]),
    "alias": (["team@mail.example.org"], ["Maildir", "sink"]),
    "many": ([f"many-{number}@example.org" for number in range(6)], ["Many"] * 6),
    "mbox": (["file@example.org"], ["mbox"]),
    "program": (["run@example.org"], ["ran"]),
    "bounce": (["fail@example.org"], ["sink"]),
}
RECIPIENTS = {name: recipients for name, (recipients, _) in KINDS.items()}
#: Seconds that a gateway may say nothing: a rare step comes late, and a long queue takes long to drain.
PATIENCE = 60
#: A delivery there that is repeated is found by its name, and not made again.
EXACT = ("Maildir", "Many")


class Site(Gateway):
    """A gateway that is started anew for every fault."""

    def __init__(self, base, zygote, store="", kinds=tuple(RECIPIENTS)):
        super().__init__(base)
        self.zygote = zygote
        self.store = store
        self.sink, self.load = Sink(), Load(self.port, 1, {kind: RECIPIENTS[kind] for kind in kinds})
        self.kills = 0
        self.home(**FILES)
        for part in ("tmp", "new", "cur"):
            (base / "home" / "Many" / part).mkdir(parents=True)

    async def killed(self, step, nth, mode="serve"):
        """Run under load until the step is passed for the n-th time, which ends the process."""
        self.sink.run = self.kills
        if step == "body.sweep":
            self.litter()
        self.zygote.ask(f"{step} kill {nth}", mode, self.base / "conf.d")
        said = await self.zygote.hear()
        if said.startswith("serves"):
            self.load.up.set()
            said = await self.zygote.hear()
            self.load.up.clear()
        assert said == f"ended {-signal.SIGKILL}", f"{step}: {said}"
        self.kills += 1

    async def killed_after(self, count):
        """Run under load, and kill it at any moment once so many messages more were accepted."""
        self.sink.run = self.kills
        self.zygote.ask("none", "serve", self.base / "conf.d")
        said = await self.zygote.hear()
        assert said.startswith("serves"), said
        wanted = len(self.load.accepted) + count
        self.load.up.set()
        while len(self.load.accepted) < wanted:  # noqa: ASYNC110 - no event for a count
            await asyncio.sleep(0.002)
        os.kill(int(said.split()[1]), signal.SIGKILL)
        self.load.up.clear()
        said = await self.zygote.hear()
        assert said == f"ended {-signal.SIGKILL}", said
        self.kills += 1

    async def failing(self, error, nth, token):
        """Send one message while the n-th call that can fail so does; gives the reply, and if one did."""
        self.sink.run = self.kills
        self.zygote.ask(f"{error} {nth}", "fail", self.base / "conf.d")
        said = await self.zygote.hear()
        assert said.startswith("serves"), said
        try:
            reply = await self.load.send(token, self.load.kinds[token.partition("-")[0]])
        except (AssertionError, EOFError, OSError) as refused:
            reply = str(refused)
        os.kill(int(said.split()[1]), signal.SIGUSR1)
        failed = await self.zygote.hear()
        said = await self.zygote.hear()
        assert said == "ended 0", f"{error} {nth}: {failed}, {said}"
        self.kills += 1
        return reply, failed == "failed True"

    async def drained(self):
        """Run without a fault until nothing is queued."""
        self.sink.run = self.kills
        self.zygote.ask("none", "drain", self.base / "conf.d")
        said = await self.zygote.hear()
        assert said.startswith("serves"), said
        said = await self.zygote.hear()
        assert said == "ended 0", said

    def litter(self):
        """Leave a body that no row names, as a kill does before the commit."""
        for folder in self.state.glob("*/shard-*/bodies"):
            (folder / "orphan").write_bytes(b"body")
        self.own()

    @contextlib.asynccontextmanager
    async def running(self):
        """Have the far host and the clients while the block lasts."""
        async with await asyncio.start_server(self.sink.serve, "127.0.0.1", 0, limit=2**20) as server:
            self.configure(server.sockets[0].getsockname()[1], MORE + self.store)
            self.own()
            async with self.load.running():
                yield

    def found(self):
        """Give place -> Counter of tokens, over all that was delivered; a torn copy counts as torn."""
        found = {place: Counter() for place in ("Maildir", "Many", "mbox", "ran", "sink", "torn")}
        for place in EXACT:
            for path in (self.base / "home" / place / "new").iterdir():
                _count(found, place, path.read_bytes())
        for content in _messages(self.base / "home" / "mbox"):
            _count(found, "mbox", content)
        with contextlib.suppress(FileNotFoundError):
            ran = (self.base / "home" / "ran").read_text()
            found["ran"].update(line.removeprefix("X-Token: ") for line in ran.splitlines())
        for token, copies in self.sink.copies.items():
            for _, content in copies:
                _count(found, "sink", content, bounce=token.startswith("bounce"))
        return found

    def judged(self):
        """Check what was promised; gives the numbers of it."""
        found, accepted = self.found(), self.load.accepted
        lost, twice, repeated = [], [], 0
        for token in accepted:
            for place, wanted in Counter(KINDS[token.partition("-")[0]][1]).items():
                lost += [f"{token} at {place}"] * (found[place][token] < wanted)
        for place in EXACT:
            wanted = 6 if place == "Many" else 1
            twice += [f"{token} in {place}" for token, count in found[place].items() if count > wanted]
        for place in ("sink", "mbox", "ran"):
            repeated += found[place].total() - len(found[place])
            # Each kill repeats what was in flight, once.
            twice += [f"{t} at {place}" for t, count in found[place].items() if count > 1 + self.kills]
        for token, copies in self.sink.copies.items():
            runs = [run for run, _ in copies]
            twice += [f"{token} at the sink in one run"] * (len(set(runs)) < len(runs))
        assert lost == [], lost
        assert twice == [], twice
        assert not found["torn"], found["torn"]
        self.told_without_a_gap()
        return {"kills": self.kills, "accepted": len(accepted), "lost": 0, "torn": 0, "repeated": repeated}

    def told_without_a_gap(self):
        """Compare the client's list with the journal, which must also tell an end for all that was born."""
        born, told, ended = set(), Counter(), set()
        for number, event in enumerate(self.journal(), 1):
            assert event["sequence"] == number
            if event["event"] == "message.accepted" and event["message"] not in born:
                born.add(event["message"])
                told[event.get("sender", "").partition("@")[0]] += event["origin"] == "smtp"
            elif event["event"] == "message.finished":
                ended.add(event["message"])
        assert self.load.accepted <= told.keys()
        assert [token for token, count in told.items() if count > 1] == []
        assert born == ended

    def journal(self):
        """Give one event after the other."""
        for path in sorted((self.state / "journal" / "shard-0").glob("*.jsonl")):
            with path.open("rb") as lines:
                yield from map(orjson.loads, lines)


def _count(found, place, content, *, bounce=False):
    token = token_of(content)
    whole = content.rstrip(b"\n").endswith(text(token).rstrip(b"\n"))
    found[place if whole or bounce else "torn"][token] += 1


def _messages(mbox):
    """Split an mbox; a tail that a kill left without its end is not a message."""
    if not mbox.exists():
        return []
    parts = mbox.read_bytes().split(b"\nFrom ")
    return [part for part in parts if b"\nX-Token: " in part and b"\nThe end of " in part]


class Zygote:
    """The process that forks gateways."""

    def __init__(self, rights, environment):
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **environment},
            **rights,
        )

    def ask(self, fault, mode, conf):
        self._process.stdin.write(f"{fault}\t{mode}\t{conf}\n")

    async def hear(self):
        """Give what is said next, "" when a gateway said nothing for long: then all is over."""
        while True:
            reading = asyncio.ensure_future(asyncio.to_thread(self._process.stdout.readline))
            await asyncio.wait([reading], timeout=PATIENCE)
            if not reading.done():
                self.close()
            line = (await reading).rstrip("\n")
            # What plugins log comes this way, too.
            if line.partition(" ")[0] in ("", "serves", "failed", "ended"):
                return line

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def folder():
    """Give a folder that nobody may enter, whose path is short."""
    base = Path(tempfile.mkdtemp(prefix="mailward-"))
    yield base
    shutil.rmtree(base, ignore_errors=True)
