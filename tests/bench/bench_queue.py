"""What a long queue costs: a million messages that wait, beside an empty queue in the same run.

`python tests/bench/bench_queue.py`. Real store, journal and dispatcher, without SMTP and with a delivery that
costs nothing, so that the queue is what is measured. Rounds on the empty and on the long one take turns; read
the ratios, as the rates are of the machine.
"""

import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import uvloop

from gateway.address import Address
from gateway.chain import Chain, Step
from gateway.envelope import Entry, EntryRecipient, Outcome, Recipient, Route, new_id
from gateway.hookspecs import SPECS
from gateway.journal import Journal
from gateway.message import Message
from gateway.plugin import Site
from gateway.queue import Dispatcher, Filter
from gateway.services import Clock

WAITING = int(os.environ.get("MAILWARD_WAITING", "1000000"))
MEMBERS = int(os.environ.get("MAILWARD_MEMBERS", "100000"))
MESSAGES, ROUNDS, SESSIONS = 2000, 5, 50
REPORT = Path("build/bench-queue.json")
PLUGIN = Path(__file__).parents[2] / "plugins" / "sqlite_queue"
BODY = b"\n" + b"A line of text of a usual length, as people write them.\n" * 10


def main():
    with tempfile.TemporaryDirectory(prefix="mailward-bench-", dir="/var/tmp") as folder:
        found = uvloop.run(measure(Path(folder)))
    for name, value in found.items():
        print(f"{name:58} {value}")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(found, indent=1) + "\n")


async def measure(folder):
    """Give what is to be read: name -> figure."""
    empty, long = Rig(folder / "empty"), Rig(folder / "long")
    await empty.start()
    await long.start()
    await long.fill()
    await long.stop()
    memory, began = resident(), time.perf_counter()
    await long.start()
    found = {f"start with {WAITING} waiting, seconds": round(time.perf_counter() - began, 2)}
    rates = {empty: [], long: []}
    for number in range(ROUNDS):
        for rig in (empty, long) if number % 2 else (long, empty):
            rates[rig].append(await rig.round())
    for column, name in enumerate(("accepted", "delivered")):
        ratio = statistics.median(b[column] / a[column] for a, b in zip(*rates.values(), strict=True))
        found[f"{name}, as a multiple of the empty queue's"] = round(ratio, 2)
    began, listed = time.perf_counter(), await long.listed()
    found[f"queue list of {listed}, seconds"] = round(time.perf_counter() - began, 1)
    found["memory that the long queue took, MB"] = resident() - memory
    large = empty.entry(0, MEMBERS)
    alone = await empty.waits(seconds=3)
    beside, found[f"a post to {MEMBERS}: members a second"] = await empty.beside(large)
    for name, waits in (("alone", alone), ("beside the post", beside)):
        shown = f"{statistics.median(waits) * 1000:.1f}, {max(waits) * 1000:.0f}"
        found[f"one message {name}: median and longest wait, ms"] = shown
    for rig in (empty, long):
        await rig.stop()
    return found


def resident():
    """Give the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


class Rig:
    """A store with its dispatcher; every delivery succeeds at once."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = Clock()
        self.left = {}
        self.delivered = 0

    async def start(self):
        self.store = plugin().SqliteQueue(self.folder / "q", time.time)
        await self.store.open()
        self.journal = Journal(self.folder / "journal", "bench")
        self.journal.open()
        hooks = {"route": lambda *_: Route("box", "local"), "deliver": self.deliver}
        steps = {name: [Step("box", call, 30.0, False, False, False)] for name, call in hooks.items()}
        chain = Chain(SPECS, steps, self.journal.emit)
        concurrency = SimpleNamespace(local=20, remote=100, per_destination=20)
        settings = SimpleNamespace(concurrency=concurrency, lifetime=1e9, delay_warning=0.0)
        site = Site("bench.example", "postmaster@bench.example", self.folder, self.folder, 1e9)
        self.dispatcher = Dispatcher(
            self.store,
            lambda: chain,
            self.journal,
            SimpleNamespace(clock=self.clock),
            lambda: settings,
            None,
            site,
        )
        await self.dispatcher.start()

    async def stop(self):
        await self.dispatcher.stop(10)
        await self.store.close()
        self.journal.close()

    async def deliver(self, delivery):
        self.delivered += len(delivery.recipients)
        if done := self.left.pop(delivery.entry.id, None):
            done.set_result(time.perf_counter())
        return [Outcome(one.number, "delivered") for one in delivery.recipients]

    def entry(self, number, members=1, due=0.0):
        recipients = [
            EntryRecipient(
                member, Recipient.of(Address(f"r{member}@d{number % 5000}.example")), due=due or time.time()
            )
            for member in range(members)
        ]
        sender = Address(f"s{number % 1000}@sender.example")
        return Entry(new_id(), sender, Message(b"Subject: bench\n", BODY), recipients, time.time())

    async def fill(self):
        """Have so many messages wait for a time that does not come."""
        due, now = time.time() + 1e6, time.time()

        def some(start, shard):
            for number in range(start, min(start + 10_000, WAITING)):
                shard.add(self.entry(number, due=due), now)

        for start in range(0, WAITING, 10_000):
            await self.store._writer.submit(lambda shard, start=start: some(start, shard))
            print(f"{start} messages wait", end="\r", file=sys.stderr)

    async def round(self):
        """Take and deliver messages; gives how many a second were taken, and delivered."""
        before, began = self.delivered, time.perf_counter()

        async def session(first):
            for number in range(first, MESSAGES, SESSIONS):
                await self.store.add(self.entry(number))
                self.dispatcher.wake()

        await asyncio.gather(*map(session, range(SESSIONS)))
        taken = time.perf_counter() - began
        while self.delivered < before + MESSAGES:  # noqa: ASYNC110 - no event for a count
            await asyncio.sleep(0.002)
        return MESSAGES / taken, MESSAGES / (time.perf_counter() - began)

    async def listed(self):
        """List all, page by page, as `queue list --json` does; gives how many there were."""
        count, after = 0, ""
        while page := await self.store.list(Filter(), 1000, after):
            count, after = count + len(page), page[-1].id
        return count

    async def wait(self):
        """Send one message; gives the seconds to its delivery."""
        entry = self.entry(7)
        done = self.left[entry.id] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await self.store.add(entry)
        self.dispatcher.wake()
        return await done - began

    async def waits(self, seconds):
        """Send one message after the other."""
        found, until = [], time.perf_counter() + seconds
        while time.perf_counter() < until:
            found.append(await self.wait())
        return found

    async def beside(self, large):
        """Send one message after the other while a post to many goes out; gives their waits, and its rate."""
        found, before, began = [], self.delivered, time.perf_counter()
        post = asyncio.create_task(self.store.add(large))
        post.add_done_callback(lambda _: self.dispatcher.wake())
        while self.delivered - before - len(found) < MEMBERS:
            found.append(await self.wait())
        await post
        return found, round(MEMBERS / (time.perf_counter() - began))


def plugin():
    """Give the store's module."""
    spec = importlib.util.spec_from_file_location(
        "bench_sqlite_queue", PLUGIN / "__init__.py", submodule_search_locations=[str(PLUGIN)]
    )
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
