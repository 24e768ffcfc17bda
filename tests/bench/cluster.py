"""What a message costs in postgres_queue: on one database, on two, and beside the embedded store.

`python tests/bench/cluster.py`. Every node is a process that takes messages in, claims and ends them, without
SMTP and without delivery: what is measured is the queue. Read the ratios and the costs for a message; the
rates are of the machine it ran on.
"""

import asyncio
import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import postgres_server  # noqa: E402 - found by the path above

from gateway.address import Address  # noqa: E402
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id  # noqa: E402
from gateway.message import Message  # noqa: E402
from gateway.queue import Finish  # noqa: E402

MESSAGES = int(os.environ.get("MAILWARD_MESSAGES", "5000"))
SESSIONS = 100
BODY = b"\n" + b"A line of text of a usual length, as people write them.\n" * 70


def plugin(stem):
    folder = ROOT / "plugins" / stem
    name = f"bench_{stem}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module(f"{name}.store"), name


def make(url, folder):
    if not url:
        return plugin("sqlite_queue")[0].SqliteQueue(folder / "q", time.time)
    store, name = plugin("postgres_queue")
    links = importlib.import_module(f"{name}.links")
    database = links.Database(url, postgres_server.SECRET, "bench")
    return store.PostgresQueue(database, folder, time.time, 86400.0, 12.0)


async def work(store, number, left):
    """Take in so many messages; claim and end what is there until all nodes together have `left` none."""

    async def session(first):
        for count in range(first, MESSAGES, SESSIONS):
            message = Message(b"Subject: bench\n", BODY)
            recipients = [EntryRecipient(0, Recipient.of(f"r@{count % 50}.example"), due=time.time())]
            sender = Address(f"s{count % 20}@{number}.example")
            await store.add(Entry(new_id(), sender, message, recipients, time.time(), size=message.size))

    async def end(entry):
        await store.confirm(entry.id)
        delivered = [replace(one, state="delivered") for one in entry.recipients]
        await store.rest(entry.id, [one.number for one in delivered])
        await store.finish([Finish(entry, delivered)])

    async with asyncio.TaskGroup() as group:
        for first in range(SESSIONS):
            group.create_task(session(first))
        while left.value > 0:
            found = await store.claim(time.time(), 240, {}, 120)
            with left.get_lock():
                left.value -= len(found)
            for entry in found:
                group.create_task(end(entry))
            await asyncio.sleep(0 if found else 0.01)


def node(number, url, started, left, results):
    async def run():
        with tempfile.TemporaryDirectory() as folder:
            store = make(url, Path(folder))
            await store.open()
            await asyncio.to_thread(started.wait)
            began = time.perf_counter()
            await work(store, number, left)
            took = time.perf_counter() - began
            await store.close()
            used = resource.getrusage(resource.RUSAGE_SELF)
            results.put((took, used.ru_utime + used.ru_stime))

    asyncio.run(run())


def ticks(server):
    """Give the CPU seconds of a server and of all its processes, those that have ended too."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        if pid == server.process.pid:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == server.process.pid:
            total += sum(map(int, fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def measure(name, urls, servers):
    context = multiprocessing.get_context("spawn")
    started, results = context.Barrier(len(urls)), context.Queue()
    left = context.Value("q", MESSAGES * len(urls))
    wal = [server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0] for server in servers]
    cpu = [ticks(server) for server in servers]
    nodes = [
        context.Process(target=node, args=(i, url, started, left, results)) for i, url in enumerate(urls)
    ]
    for one in nodes:
        one.start()
    took = [results.get(timeout=600) for _ in nodes]
    for one in nodes:
        one.join()
    count = MESSAGES * len(urls)
    found = {"set-up": name, "messages": count, "per second": round(count / max(t for t, _ in took))}
    found["node CPU ms"] = round(1000 * sum(c for _, c in took) / count, 2)
    if servers:
        found["database CPU ms"] = round(
            1000 * sum(ticks(s) - before for s, before in zip(servers, cpu, strict=True)) / count, 2
        )
        after = [server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0] for server in servers]
        found["WAL KiB"] = round(float(sum(after) - sum(wal)) / 1024 / count, 1)
    print(json.dumps(found), flush=True)


def main():
    servers = [postgres_server.make() for _ in range(2)]
    try:
        for server in servers:
            server.execute("CREATE DATABASE bench")
        one, two = (server.url_of("bench") for server in servers)
        measure("embedded, one node", [""], [])
        measure("one database, one node", [one], servers[:1])
        measure("one database, two nodes", [one, one], servers[:1])
        measure("two databases, a node each", [one, two], servers)
    finally:
        for server in servers:
            server.remove()


if __name__ == "__main__":
    main()
