"""The store: a Queue over one SQLite file, with a writer thread and a reader thread."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

import apsw

from gateway import Address, FileBody, point
from gateway.queue import AGES, Queue, QueueDamaged, QueueError, QueueFull, Rest, Stats, lane

from . import disk
from .filtering import conditions, teach
from .fresh import Fresh
from .reader import Reader, fault
from .rows import encode
from .salvage import ShardWreck
from .shard import Shard
from .suspensions import Suspensions
from .view import ShardView, told
from .writer import Writer, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from gateway import Entry, EntryRecipient, Recipient
    from gateway.queue import Filter, Finish, Snapshot, Suspension

R = TypeVar("R")

#: Recipients that one transaction may add, so that a list post does not hold up the others.
BATCH = 1000
#: Bytes of the disk that new mail leaves free: without them the ends of deliveries could not be stored, and
#: a queue that has filled its disk would never get smaller.
RESERVE = 32 * 1024 * 1024
#: So often, in seconds, the oldest ids of finished messages are forgotten, and so many at a time.
FORGET, FORGOTTEN = 60.0, 50_000


class SqliteQueue(Queue):
    """One shard in `folder`. `now` gives the time in seconds since the epoch.

    `lifetime`: so many seconds the ids of finished messages are kept. `conf`: the configuration that
    commands are given which an error names.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], float],
        lifetime: float = 7 * 86400.0,
        conf: Path | None = None,
    ) -> None:
        self.folder = folder
        self._lifetime, self._conf = lifetime, conf
        self.spool_folder = folder / "spool"
        self._bodies = folder / "bodies"
        self._now = now
        self._lock: TextIO | None = None
        self._fresh = Fresh()
        #: Entries given from memory: they hold one recipient and nothing beside it.
        self._sole: set[str] = set()
        #: Before this time the file has nothing to claim.
        self._next = 0.0
        self._free, self._looked = 0, -math.inf
        #: When ids of finished messages were last forgotten.
        self._forgot = -math.inf
        self._suspensions = Suspensions(folder.parent / "suspended.json")

    async def open(self) -> None:
        """Take the lock, check the file, sweep, and start the threads."""
        await asyncio.to_thread(self._open)
        self._fresh, self._sole, self._next = Fresh(), set(), 0.0
        self._writer = Writer(self._shard, asyncio.get_running_loop())
        self._checking = asyncio.create_task(self._check())

    def _open(self) -> None:
        try:
            disk.make_folders(self.folder)
            self._lock = disk.lock(self.folder)
            path = self.folder / "queue.db"
            connection = disk.connect(path, _schema())
            self._shard = Shard(connection, self._bodies)
            with connection:
                self._shard.sweep()
            disk.sweep_files(self.folder, self._shard.files())
            teach(connection)
            self._reader, self._looker, self._checker = (Reader(path, self._bodies) for _ in range(3))
            self._free, self._looked = disk.free(connection, self.folder), time.monotonic()
            disk.trust(connection)
        except Exception as error:
            self._unlock()
            found = translated(error)
            if isinstance(found, QueueDamaged):
                found = disk.damaged(self.folder / "queue.db", str(error), self._conf)
            raise found from error

    async def _check(self) -> None:
        """Read a large file whole, beside the work; one that is damaged takes nothing any more."""
        path = self.folder / "queue.db"
        if path.stat().st_size > disk.CHECKED_FIRST and (found := await self._checker.run(fault)):
            self._writer.refuse(disk.damaged(path, found, self._conf))

    async def close(self) -> None:
        """Finish what waits, and give the lock back."""
        await self._writer.stop()
        for reader in (self._reader, self._looker, self._checker):
            reader.close()
        await self._checking
        with contextlib.suppress(apsw.Error):  # the log is whole; the next owner moves it home
            self._shard.connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def add(self, entry: Entry) -> None:
        """Commit an entry together with all others that wait. A cancelled caller does not stop the commit."""
        now = self._now()
        await self._refuse_when_full(entry.message.size)
        if isinstance(entry.message.body, FileBody) or len(entry.recipients) > BATCH:
            await asyncio.shield(asyncio.create_task(self._add_large(entry, now)))
            return
        handed = self._fresh.reserve(entry, now)
        future = self._writer.submit(lambda shard: shard.add(entry, now, handed=handed))
        if handed:
            future.add_done_callback(lambda done: self._handed(entry, done))
        else:
            self._due(entry.recipients)
        await asyncio.shield(future)

    async def restore(self, snapshot: Snapshot) -> bool:
        """Commit an entry as it was elsewhere. A cancelled caller does not stop the commit."""
        entry, now = snapshot.entry, self._now()
        if await self._reader.run(lambda shard: shard.known([entry.id], now - self._lifetime)):
            return False
        await self._refuse_when_full(entry.message.size)
        await asyncio.shield(asyncio.create_task(self._add_large(entry, now, snapshot)))
        return True

    async def known(self, ids: Collection[str]) -> set[str]:
        """Give those of the ids that this shard, or one beside it, holds or has finished."""
        return await asyncio.to_thread(self._known, ids, self._now() - self._lifetime)

    def _known(self, ids: Collection[str], since: float) -> set[str]:
        found: set[str] = set()
        for view in self.views():
            with view:
                found |= view.known(ids, since)
        return found

    async def remember(self, ended: Mapping[str, float]) -> None:
        """Take messages for finished that ended elsewhere."""
        await asyncio.shield(self._writer.submit(lambda shard: shard.remember(ended)))

    def views(self) -> Sequence[ShardView]:
        """Open this shard and those beside it."""
        folders = {self.folder, *self.folder.parent.glob("shard-*")}
        return [ShardView(one) for one in sorted(folders) if (one / "queue.db").exists()]

    def estate(self, folder: Path) -> SqliteQueue:
        """Give the shard that a dead owner has left."""
        if not (folder / "queue.db").exists():
            raise QueueError(f"{folder} is no shard: it holds no queue.db")
        return SqliteQueue(folder, self._now, self._lifetime, self._conf)

    def wreck(self, path: Path) -> ShardWreck:
        """Open a damaged shard."""
        with told():
            return ShardWreck(path, _schema())

    async def _refuse_when_full(self, size: int) -> None:
        """Look at the disk once a second at most, and count what is taken in between."""
        now = time.monotonic()
        if now - self._looked >= 1:
            self._looked = now
            self._free = await self._reader.run(lambda shard: disk.free(shard.connection, self.folder))
        self._free -= size
        if self._free < RESERVE:
            self._looked = -math.inf
            raise QueueFull("no room is left for the queue")

    def _handed(self, entry: Entry, done: asyncio.Future[int]) -> None:
        if done.cancelled() or done.exception():
            self._fresh.drop(entry)
        else:
            self._fresh.put(entry)
            point("queue.handed")

    async def _add_large(self, entry: Entry, now: float, was: Snapshot | None = None) -> None:
        """Add an entry whose body is a file, or whose recipients need several transactions."""
        await self._keep([entry])
        try:
            if len(entry.recipients) > BATCH:
                await self._add_in_batches(entry, now, was)
            else:
                await self._writer.submit(lambda shard: shard.add(entry, now, was=was))
        except Exception:
            self._unlink([entry.id])
            raise
        self._due(entry.recipients)
        await self._kept([entry])

    async def _add_in_batches(self, entry: Entry, now: float, was: Snapshot | None) -> None:
        """Write the recipients while nobody sees them; the flip is the commit."""
        seq = await self._writer.submit(lambda shard: shard.add(entry, now, "receiving", was=was))
        try:
            point("queue.receiving")
            for start in range(0, len(entry.recipients), BATCH):
                some = entry.recipients[start : start + BATCH]
                await self._writer.submit(partial(_add_recipients, seq, entry, some, now, was is not None))
                point("queue.part")
            point("queue.flip")
            await self._writer.submit(lambda shard: shard.flip(seq))
        except Exception:
            self._writer.submit(lambda shard: shard.drop(seq))
            raise

    async def claim(self, now: float, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        """Take from memory and from the file, half and half when both have some."""
        stored = self._next <= now
        found = self._from_memory(limit // 2 or 1 if stored else limit, busy, per_lane)
        if stored and len(found) < limit:
            found += await self._from_file(now, limit - len(found), _held(busy, found), per_lane)
        if stored:
            left = limit - sum(len(entry.recipients) for entry in found)
            found += self._from_memory(left, _held(busy, found), per_lane)
        return found

    def _from_memory(self, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        taken = self._fresh.claim(limit, busy, per_lane)
        self._sole.update(entry.id for entry in taken)
        return taken

    async def _from_file(self, now: float, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        held = {encode(name): count for name, count in busy.items()}

        def claim(shard: Shard) -> tuple[list[Entry], float | None]:
            return shard.claim(now, limit, held, per_lane), shard.next_due()

        # What is stored from here on lowers it again; what was stored before is seen by this claim.
        self._next = math.inf
        try:
            entries, due = await self._writer.submit(claim)
        except BaseException:
            self._next = 0.0
            raise
        self._next = min(self._next, math.inf if due is None else due)
        return entries

    async def finish(self, finishes: Sequence[Finish]) -> None:
        """End attempts in one transaction. A cancelled caller does not stop the commit."""
        await asyncio.shield(asyncio.create_task(self._finish(finishes)))

    async def _finish(self, finishes: Sequence[Finish]) -> None:
        births = [birth for one in finishes for birth in one.births]
        now = self._now()

        forget = now >= self._forgot + FORGET
        if forget:
            self._forgot = now

        def finish(shard: Shard) -> list[str]:
            if forget:
                shard.forget_finished(now - self._lifetime, FORGOTTEN)
            return [name for one in finishes for name in shard.finish(one, now)]

        await self._keep(births)
        try:
            unneeded = await self._writer.submit(finish)
        except Exception:
            self._unlink(birth.id for birth in births)
            raise
        self._sole.difference_update(one.entry.id for one in finishes)
        self._due(recipient for one in finishes for recipient in one.recipients)
        self._due(recipient for birth in births for recipient in birth.recipients)
        await self._kept(births)
        if unneeded:
            point("body.forget")
        self._unlink(unneeded)

    async def rest(self, entry_id: str, numbers: Collection[int]) -> Rest:
        """Tell what the entry holds beside these recipients; what came from memory holds no others."""
        if entry_id in self._sole:
            return Rest(0)
        return await self._reader.run(lambda shard: shard.rest(entry_id, numbers))

    async def split(self, entry: Entry, number: int, recipients: Sequence[EntryRecipient]) -> None:
        """Put several queued recipients in the place of a claimed one."""
        now = self._now()
        self._sole.discard(entry.id)
        await asyncio.shield(self._writer.submit(lambda shard: shard.split(entry, number, recipients, now)))
        self._next = 0.0

    async def release_claims(self, entries: Sequence[Entry]) -> None:
        """Give claimed recipients back."""
        self._sole.difference_update(entry.id for entry in entries)
        await asyncio.shield(self._writer.submit(lambda shard: shard.release_claims(entries)))
        self._next = 0.0

    async def next_due(self) -> float | None:
        """When the earliest unclaimed recipient is due."""
        if self._fresh:
            return 0.0
        if self._next > self._now():
            return None if self._next == math.inf else self._next
        return await self._reader.run(Shard.next_due)

    async def get(self, entry_id: str) -> Entry | None:
        """Give one entry with its message."""
        await self._settle_fresh()
        return await self._reader.run(lambda shard: shard.get(entry_id))

    async def retry(self, wanted: Filter) -> list[Entry]:
        """Make queued recipients due now."""
        return await self._change("retry", wanted)

    async def hold(self, wanted: Filter) -> list[Entry]:
        """Move queued recipients to held."""
        return await self._change("hold", wanted)

    async def release(self, wanted: Filter) -> list[Entry]:
        """Move held recipients to queued."""
        return await self._change("release", wanted)

    async def redirect(self, wanted: Filter, to: Address) -> list[Entry]:
        """Give queued and held recipients another address."""
        return await self._readdress(wanted, lambda one: one.redirected(to))

    async def reroute(self, wanted: Filter) -> list[Entry]:
        """Give queued and held recipients the address that the sender wrote."""
        return await self._readdress(wanted, lambda one: one.rerouted())

    async def _readdress(self, wanted: Filter, change: Callable[[Recipient], Recipient]) -> list[Entry]:
        where, values = conditions(wanted)
        now = self._now()
        return await self._touch(lambda shard: shard.readdress(where, values, now, change))

    async def _change(self, verb: str, wanted: Filter) -> list[Entry]:
        where, values = conditions(wanted)
        now = self._now()
        return await self._touch(lambda shard: shard.change(verb, where, values, now))

    async def _touch(self, change: Callable[[Shard], Iterable[str]]) -> list[Entry]:
        """Make a change that gives ids; gives the entries as they are after it."""

        def touch(shard: Shard) -> list[Entry]:
            return [entry for id_ in change(shard) for _, entry, _ in shard.entries("e.id = ?", [id_], 1)]

        await self._settle_fresh()
        changed = await asyncio.shield(self._writer.submit(touch))
        self._next = 0.0
        return changed

    async def suspend(self, suspension: Suspension) -> bool:
        """Keep a suspension."""

        def suspend(named: dict[str, Suspension]) -> bool:
            before = named.get(suspension.name)
            named[suspension.name] = suspension
            return before != suspension

        return await self._suspend(suspend)

    async def resume(self, name: str) -> Suspension | None:
        """Forget a suspension."""
        return await self._suspend(lambda named: named.pop(name, None))

    async def _suspend(self, change: Callable[[dict[str, Suspension]], R]) -> R:
        try:
            return await asyncio.to_thread(self._suspensions.change, change)
        except OSError as error:
            raise translated(error) from error

    async def suspended(self) -> list[Suspension]:
        """Give the suspensions that run."""
        now = self._now()
        return [one for one in self._suspensions.read().values() if one.runs(now)]

    async def delete(self, wanted: Filter) -> list[Entry]:
        """Forget whole entries, without a bounce."""
        where, values = conditions(wanted)
        await self._settle_fresh()
        entries, unneeded = await asyncio.shield(
            self._writer.submit(lambda shard: shard.delete(where, values))
        )
        self._unlink(unneeded)
        return entries

    async def take(self, wanted: Filter, limit: int = 1000) -> list[Entry]:
        """Claim queued and held recipients whatever their due time."""
        where, values = conditions(wanted)
        await self._settle_fresh()
        return await asyncio.shield(self._writer.submit(lambda shard: shard.take(where, values, limit)))

    async def stats(self) -> list[Stats]:
        """Count recipients by domain, state and age."""
        await self._settle_fresh()
        now = self._now()
        found: dict[tuple[str, str], Stats] = {}
        for domain, state, column, count, oldest in await self._looker.run(lambda shard: shard.stats(now)):
            key = Address.decode(domain), state
            row = found.get(key) or Stats(*key, 0, math.inf, [0] * (len(AGES) + 1))
            ages = [*row.ages[:column], count, *row.ages[column + 1 :]]
            found[key] = Stats(*key, row.recipients + count, min(row.oldest, oldest), ages)
        return list(found.values())

    async def _settle_fresh(self) -> None:
        """Give what waits in memory back to the file, where people can see and change it."""
        if waiting := self._fresh.drain():
            await self.release_claims(waiting)

    def _due(self, recipients: Iterable[EntryRecipient]) -> None:
        for one in recipients:
            if one.state == "queued":
                self._next = min(self._next, one.due)

    async def _keep(self, entries: Sequence[Entry]) -> None:
        """Put bodies that are files on stable storage, before a row names them: all, or none."""
        kept: list[str] = []
        for entry in entries:
            if isinstance(entry.message.body, FileBody):
                try:
                    await asyncio.to_thread(disk.keep_body, entry.message.body.path, self._bodies / entry.id)
                except OSError as error:
                    self._unlink(kept)
                    raise translated(error) from error
                kept.append(entry.id)

    async def _kept(self, entries: Sequence[Entry]) -> None:
        """Take the spooled files over, now that the rows are there."""
        for entry in entries:
            body = entry.message.body
            if isinstance(body, FileBody):
                entry.message.body = FileBody(self._bodies / entry.id, body.size)
                if body.path.parent == self.spool_folder:
                    point("body.taken")
                    await asyncio.to_thread(body.path.unlink, missing_ok=True)

    def _unlink(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            (self._bodies / id_).unlink(missing_ok=True)

    async def list(self, wanted: Filter, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give entries in order of id, without bodies."""
        where, values = conditions(wanted)
        await self._settle_fresh()
        found: list[Entry] = []
        while len(found) < limit:
            look = partial(_window, where, values, limit - len(found), after)
            some, after = await self._looker.run(look)
            found += some
            if not after:
                break
        return found


def _add_recipients(
    seq: int, entry: Entry, some: Sequence[EntryRecipient], now: float, restored: bool, shard: Shard
) -> None:
    shard.add_recipients(seq, entry, some, now, restored=restored)


def _window(
    where: str, values: Sequence[object], limit: int, after: str, shard: Shard
) -> tuple[list[Entry], str]:
    return shard.window(where, values, limit, after)


def _held(busy: Mapping[str, int], entries: Sequence[Entry]) -> Mapping[str, int]:
    """Add what was just taken to what is held of each lane."""
    found = dict(busy)
    for entry in entries:
        for one in entry.recipients:
            name = lane(entry, one)
            found[name] = found.get(name, 0) + 1
    return found


def _schema() -> str:
    return Path(__file__).with_name("schema.sql").read_text("utf-8")
