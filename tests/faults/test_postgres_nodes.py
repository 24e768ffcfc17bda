"""Two gateways on one PostgreSQL: one is killed, stopped or cut off under load, and the other takes over.

The quick ones of these are in `tests/plugins/test_postgres_queue.py`, with nodes of one process.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from killable import OWNER, Gateway
from postgres_server import SECRET, Proxy
from traffic import KINDS, Load, Sink, kind, text, token_of

pytestmark = pytest.mark.slow

MESSAGES = int(os.environ.get("MAILWARD_MESSAGES", "12000"))
#: From so many on a share of a thousandth can be told.
ENOUGH = 10_000
SESSIONS = 8
#: Seconds within which what a dead node had must be somebody else's.
TAKEN_OVER = 30.0


class Node(Gateway):
    """One of two gateways of a cluster; both have the homes of the accounts."""

    def __init__(self, base, url, sink):
        base.mkdir()
        (base / "home").symlink_to("../home")
        super().__init__(base)
        self.home(**{"sent-on": "&box@example.org\n"})
        (base / "secret").write_text(SECRET)
        self.configure(sink.port)
        (base / "conf.d" / "queue.yaml").write_text(
            "gateway: {workers: 1}\n"
            "queue: {concurrency: {local: 4, remote: 4}}\n"
            "sqlite_queue: {enabled: false}\n"
            f"postgres_queue: {{database: '{url}', password_file: secret}}\n"
        )
        self.own()

    @property
    def names(self):
        return [path.read_text().strip() for path in (self.state / "postgres_queue").glob("shard-*/node")]

    def signal(self, number):
        os.killpg(self.process.pid, number)


class Cluster:
    """Two nodes, their clients, and where their mail came."""

    def __init__(self, base, server, database, proxy, sink):
        self.server, self.database, self.sink, self.proxy = server, database, sink, proxy
        (base / "home").mkdir()
        self.victim = Node(base / "victim", server.url_of(database, port=proxy.port), sink)
        self.other = Node(base / "other", server.url_of(database), sink)
        for path in (base / "home", *(base / "home").rglob("*")):
            os.chown(path, OWNER, OWNER)
        self.loads = [Load(node.port, seed) for seed, node in enumerate((self.victim, self.other))]
        self.refused = 0
        self.enough = asyncio.Event()

    @property
    def accepted(self):
        return self.loads[0].accepted | self.loads[1].accepted

    async def send(self, number, first):
        """Send by one of the sessions until there is enough; a node that is not there is asked again."""
        load, count = self.loads[number], first
        while not self.enough.is_set():
            name = list(KINDS)[count % len(KINDS)]
            with contextlib.suppress(OSError, EOFError, TimeoutError, AssertionError):
                async with asyncio.timeout(60):
                    reply = await load.send(f"{name}-{number}-{count}", KINDS[name])
                self.refused += not reply.startswith("250")
                if not reply.startswith("250"):
                    assert reply.startswith("451"), reply
                    await asyncio.sleep(0.2)
            count += SESSIONS
            if len(self.accepted) >= MESSAGES:
                self.enough.set()
            await asyncio.sleep(0)

    async def until(self, condition, seconds):
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(0.1)

    def owned(self):
        """Say how much is in the hands of the victim's epoch of before the fault."""
        rows = self.query("SELECT count(*) FROM mailward.entry WHERE owner = ANY(ARRAY[%s]::bigint[])")
        return rows[0][0]

    def note_epochs(self):
        names = ", ".join(f"'{name}'" for name in self.victim.names)
        rows = self.server.execute(
            f"SELECT epoch FROM mailward.node WHERE name IN ({names})", database=self.database
        )
        self.epochs = ", ".join(str(epoch) for (epoch,) in rows)
        assert self.epochs

    def query(self, statement):
        return self.server.execute(statement.replace("%s", self.epochs), database=self.database)

    def empty(self):
        return self.query("SELECT count(*) FROM mailward.entry") == [(0,)]

    def copies(self):
        """Give every copy of every message, by where it came."""
        found = {}
        for content in self.other.delivered():
            found.setdefault(("Maildir", token_of(content)), []).append(content)
        for token, copies in self.sink.copies.items():
            found[("sink", token)] = [content for _, content in copies]
        return found


def wanted(token):
    """Say where a message must be."""
    return {
        "local": ["Maildir"],
        "remote": ["sink"],
        "both": ["Maildir", "sink"],
        "forward": ["Maildir"],
    }[kind(token)]


@pytest.fixture
async def cluster(postgres_server):
    # Not pytest's folder: nobody may not enter that one, and a socket's path must be short.
    base = Path(tempfile.mkdtemp(prefix="mailward-"))
    base.chmod(0o755)
    database = f"cluster_{os.getpid()}_{time.monotonic_ns()}"
    postgres_server.execute(f"CREATE DATABASE {database}")
    sink = Sink()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0, limit=2**20)
    sink.port = server.sockets[0].getsockname()[1]
    async with Proxy(postgres_server.port) as proxy:
        made = Cluster(base, postgres_server, database, proxy, sink)
        yield made
        for node in (made.victim, made.other):
            if node.process is not None and node.process.returncode is None:
                node.signal(signal.SIGCONT)
                await node.kill()
    server.close()
    shutil.rmtree(base)
    postgres_server.execute(f"DROP DATABASE {database} WITH (FORCE)")


async def kill(cluster):
    await cluster.victim.kill()


async def stop(cluster):
    cluster.victim.signal(signal.SIGSTOP)


async def cut(cluster):
    cluster.proxy.block()


async def go_on(cluster, fault):
    """Let the victim come back, with all that it still believes."""
    if fault is kill:
        await cluster.victim.start()
    elif fault is stop:
        cluster.victim.signal(signal.SIGCONT)
    else:
        cluster.proxy.drop()
        cluster.proxy.unblock()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("fault", [kill, stop, cut])
async def test_the_other_takes_over_and_nothing_is_lost(cluster, fault, numbers):
    await cluster.victim.start()
    await cluster.other.start()
    cluster.note_epochs()
    async with asyncio.TaskGroup() as group:
        for number in (0, 1):
            for first in range(SESSIONS):
                group.create_task(cluster.send(number, first))
        await cluster.until(lambda: len(cluster.accepted) >= MESSAGES // 2, 400)
        while not (held := await asyncio.to_thread(cluster.owned)):  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0)
        began = time.monotonic()
        await fault(cluster)
        await cluster.until(lambda: not cluster.owned(), 60)
        took = time.monotonic() - began
        await go_on(cluster, fault)
    await cluster.until(cluster.empty, 600)
    copies = cluster.copies()
    deliveries = [(place, token) for token in cluster.accepted for place in wanted(token)]
    lost = [one for one in deliveries if one not in copies]
    torn = [
        one
        for one, some in copies.items()
        if any(content[-len(text(one[1])) :] != text(one[1]) for content in some)
    ]
    repeated = sum(len(copies[one]) - 1 for one in deliveries if one in copies)
    numbers(
        f"two nodes: {fault.__name__}",
        accepted=len(cluster.accepted),
        deliveries=len(deliveries),
        in_hand=held,
        taken_over_after=f"{took:.1f} s",
        lost=len(lost),
        repeated=repeated,
        refused=cluster.refused,
    )
    assert lost == []
    assert torn == []
    assert took < TAKEN_OVER
    # Of few messages one is more than a thousandth: there, no more than what the node had in hand.
    assert repeated <= (len(deliveries) / 1000 if MESSAGES >= ENOUGH else held)
    assert await cluster.victim.stop() == 0
    assert await cluster.other.stop() == 0
