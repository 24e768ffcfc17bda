"""The power goes while the store writes: what it had said is there, whole, and what had ended stays so.

A life of the store is recorded once; each cut of it makes the folder as the disk may have left it, and the
real store opens that.
"""

import asyncio
import importlib.util
import math
import os
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from disks import Recorder

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import FileBody, Message
from gateway.queue import Filter, Finish

SEED = int(os.environ.get("MAILWARD_SEED", "0")) or random.SystemRandom().randrange(10**6)
CUTS = int(os.environ.get("MAILWARD_CUTS", "10000"))
PLUGIN = Path(__file__).parents[2] / "plugins" / "sqlite_queue"
BORN = 1_700_000_000.0
MANY = 4


@pytest.fixture(scope="module")
def sqlite_queue():
    spec = importlib.util.spec_from_file_location(
        "power_cut_sqlite", PLUGIN / "__init__.py", submodule_search_locations=[str(PLUGIN)]
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["power_cut_sqlite.store"].BATCH = MANY
    return module


@pytest.fixture
def base():
    """Give a folder in memory, where there is one: a cut needs no disk of its own."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="mailward-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


class Life:
    """What a store was asked to do, and the moments between which each became true."""

    def __init__(self, store, recorder, chance):
        self.store, self.recorder, self.random = store, recorder, chance
        self.texts, self.counts, self.parents = {}, {}, {}
        #: id -> moments: asked for, promised; (id, number) -> moments: asked to end, ended.
        self.added, self.ended = {}, {}
        #: (id, number) -> [(moment, attempts)] promised.
        self.attempts = {}

    @property
    def moment(self):
        return len(self.recorder.steps)

    async def live(self, deeds):
        for _ in range(deeds):
            await self.random.choice([self.take_in, self.deliver, self.deliver, self.hold])()

    async def take_in(self):
        asked = self.moment
        entries = [self.entry() for _ in range(self.random.randint(1, 4))]
        await asyncio.gather(*map(self.store.add, entries))
        self.promised(entries, asked)

    def promised(self, entries, asked):
        for entry in entries:
            self.added[entry.id] = (asked, self.moment)

    def entry(self):
        id_, count = new_id(), self.random.choice([1, 1, 1, 2, MANY + 2])
        body = b"\n" + b"The body of %s.\n" % id_.encode() * self.random.randint(1, 120)
        self.texts[id_], self.counts[id_] = b"Subject: t\n" + body, count
        if self.random.random() < 0.25:
            path = self.store.spool_folder / id_
            path.write_bytes(body)
            body = FileBody(path, len(body))
        recipients = [
            EntryRecipient(number, Recipient.of(Address(f"r{number}@y.example"))) for number in range(count)
        ]
        return Entry(id_, Address("s@x.example"), Message(b"Subject: t\n", body), recipients, BORN)

    async def deliver(self):
        taken = await self.store.claim(BORN, self.random.randint(1, 8), {}, 8)
        if not taken:
            return
        finishes = [self.finish(entry) for entry in taken]
        births = [birth for finish in finishes for birth in finish.births]
        asked = self.moment
        await self.store.finish(finishes)
        self.promised(births, asked)
        for finish in finishes:
            for one in finish.recipients:
                key = (finish.entry.id, one.number)
                if one.state == "delivered":
                    self.ended[key] = (asked, self.moment)
                else:
                    self.attempts.setdefault(key, []).append((self.moment, one.attempts))

    def finish(self, entry):
        after, births = [], []
        for one in entry.recipients:
            if self.random.random() < 0.4:
                after.append(replace(one, state="queued", attempts=one.attempts + 1, due=0.0))
                continue
            after.append(replace(one, state="delivered"))
            if self.random.random() < 0.2:
                births.append(self.entry())
                self.parents[births[-1].id] = (entry.id, one.number)
        return Finish(entry, after, births)

    async def hold(self):
        await self.store.hold(Filter())
        await self.store.release(Filter())

    def wrong_at(self, moment, found):
        """Say what is wrong with the entries that were found after a cut."""
        for id_, (asked, promised) in self.added.items():
            numbers = {one.number for one in found[id_].recipients} if id_ in found else set()
            if id_ in found and (asked >= moment or bytes(found[id_].message) != self.texts[id_]):
                yield f"{id_} was never asked for, or is torn"
            if promised <= moment and id_ not in found and self.open(id_, moment):
                yield f"{id_} is lost"
            if id_ in found:
                yield from self._recipients(id_, moment, numbers, found[id_])
            if parent := self.parents.get(id_):
                left = parent[0] in found and parent[1] in {r.number for r in found[parent[0]].recipients}
                if left and id_ in found:
                    yield f"{id_} is born, and {parent} will bear it again"

    def _recipients(self, id_, moment, numbers, entry):
        if missing := self.open(id_, moment) - numbers:
            yield f"{id_}: recipients {missing} are lost"
        for number in numbers:
            if self.ended.get((id_, number), (0, math.inf))[1] <= moment:
                yield f"{id_}: recipient {number} was delivered"
        for one in entry.recipients:
            known = [count for when, count in self.attempts.get((id_, one.number), ()) if when <= moment]
            if one.attempts < max(known, default=0):
                yield f"{id_}: recipient {one.number} forgot an attempt"

    def open(self, id_, moment):
        """Give the recipients that nobody had asked to end."""
        numbers = range(self.counts[id_])
        return {n for n in numbers if self.ended.get((id_, n), (math.inf, 0))[0] >= moment}


async def recorded(sqlite_queue, folder, chance, deeds):
    """Live once, in `folder`; gives the life."""
    store = sqlite_queue.SqliteQueue(folder, lambda: BORN)
    await store.open()
    await store.close()
    recorder = Recorder(folder)
    with recorder.recording():
        store = sqlite_queue.SqliteQueue(folder, lambda: BORN)
        await store.open()
        # Move the log home often, which is when SQLite writes over what was safe.
        store._shard.connection.wal_autocheckpoint(20)
        life = Life(store, recorder, chance)
        await life.live(deeds)
        await store.close()
    return life


async def found_after(sqlite_queue, folder, files, old):
    """Open the real store on what a cut left; gives id -> entry."""
    for path, content in files.items():
        target = folder / path.relative_to(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    store = sqlite_queue.SqliteQueue(folder, lambda: BORN)
    await store.open()
    try:
        return {
            entry.id: _in_memory(await store.get(entry.id)) for entry in await store.list(Filter(), 10_000)
        }
    finally:
        await store.close()
        shutil.rmtree(folder)


def _in_memory(entry):
    return replace(entry, message=Message.parse(bytes(entry.message)))


async def cut(sqlite_queue, base, deeds, cuts, seed):
    """Record one life and cut it; gives how many entries were found over all cuts."""
    chance = random.Random(seed)
    life = await recorded(sqlite_queue, base / "life", chance, deeds)
    seen = 0
    for _ in range(cuts):
        moment = chance.randrange(life.moment + 1)
        files = life.recorder.at(moment, chance)
        found = await found_after(sqlite_queue, base / "after", files, base / "life")
        wrong = list(life.wrong_at(moment, found))
        assert wrong == [], f"MAILWARD_SEED={seed}, moment {moment}: {wrong[:5]}"
        seen += len(found)
    shutil.rmtree(base / "life")
    return seen


async def test_some_cuts_lose_nothing(sqlite_queue, base):
    assert await cut(sqlite_queue, base, 40, 40, SEED)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_ten_thousand_cuts_lose_nothing(sqlite_queue, base, numbers):
    lives, seen = max(1, CUTS // 250), 0
    for life in range(lives):
        seen += await cut(sqlite_queue, base, 60, 250, SEED + life)
        print(f"{(life + 1) * 250} cuts", end="\r", flush=True)
    numbers("power cuts", cuts=lives * 250, lives=lives, entries=seen, lost=0, torn=0)
