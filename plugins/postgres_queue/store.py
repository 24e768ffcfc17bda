"""The store: a Queue over one PostgreSQL database, for any number of nodes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import uuid
from collections import deque
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TextIO

from gateway import Address, FileBody, Message, point
from gateway.queue import AGES, ClaimLost, Filter, Queue, QueueError, QueueLocked, Rest, Stats, Suspension

from . import operations, rows, statements
from .bodies import RECIPIENTS, Bodies, Swept
from .claims import Claims, counts
from .lease import CHANNEL, Lease
from .lease import now as uptime
from .limits import NodeCounters
from .links import Link
from .schema import migrate
from .view import DatabaseView
from .writer import Work, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from gateway import Counters, Entry, EntryRecipient
    from gateway.queue import Finish, Snapshot, View

    from .links import Connection, Database
    from .operations import Change, Page

#: Other nodes are told of new mail this many seconds after the first of it at the latest.
HINT = 0.05
#: Seconds between two rounds of tidying up, and after an error of the lease.
TIDY, AGAIN = 60.0, 0.5
_ALIVE = "SELECT 1 FROM node WHERE epoch = %s FOR KEY SHARE"
_SUSPEND = (
    "INSERT INTO suspension VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET more = excluded.more "
    "WHERE suspension.more <> excluded.more"
)


class PostgresQueue(Queue):
    """A worker's door to the database; `folder` keeps who it is, and bodies on their way."""

    shared: ClassVar[bool] = True

    def __init__(
        self,
        database: Database,
        folder: Path,
        now: Callable[[], float],
        lifetime: float,
        lease: float,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._database = database
        self._folder = folder
        self.spool_folder = folder / "spool"
        self._now = now
        self._lifetime = lifetime
        self._seconds = lease
        self._limits = NodeCounters(tell)
        self._wake: Callable[[], None] = lambda: None
        self._lock: TextIO | None = None

    async def open(self) -> None:
        """Join the nodes; what a former life of this worker held is given back."""
        self._prepare()
        # Connections bear the node's name: by it the others find those of a node that hangs.
        database = replace(self._database, name=self._name)
        #: For what must not wait for each other: stores, claims, what people ask, bodies, the lease, limits.
        self._links = tuple(Link(database) for _ in range(6))
        writing, self._reading, self._asking, bulk, leasing, limiting = self._links
        try:
            await leasing.run(migrate)
            point("queue.created")
            self._lease = Lease(leasing, self._name, self._seconds, self._woken)
            await self._lease.join()
            self._limits.join(limiting, self._lease)
        except BaseException:
            await self._hang_up()
            raise
        self._claims = Claims()
        self._bodies = Bodies(self._folder / "bodies", bulk)
        self._fetched: deque[Entry] = deque()
        self._fetching = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cursor = 0
        #: Entries that we have claimed and that never had another recipient.
        self._sole: set[str] = set()
        #: Claims may be noted in the database that nobody here knows of.
        self._doubt = False
        self._hinted = False
        self._writer = Writer(writing, self._lease, self._now)
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    def _prepare(self) -> None:
        for one in (self._folder, self.spool_folder, self._folder / "bodies"):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise QueueLocked(f"another gateway works with {self._folder}") from error
        for path in (*self.spool_folder.iterdir(), *(self._folder / "bodies").iterdir()):
            point("body.sweep")
            path.unlink()
        named = self._folder / "node"
        if not named.exists():
            named.write_text(f"{uuid.uuid4()} {os.uname().nodename}\n")
        self._name = named.read_text("utf-8").strip()

    async def close(self) -> None:
        """Finish what waits, and be no node any more; what is claimed is given back."""
        self._keeping.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._keeping, *self._tasks, return_exceptions=True)
        await self._writer.stop()
        await self._limits.leave()
        with contextlib.suppress(QueueError):
            await self._lease.leave()
        await self._hang_up()

    async def _hang_up(self) -> None:
        for link in self._links:
            await link.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # Staying alive.

    async def _keep(self) -> None:
        """Renew the lease, take over from the dead, and look for what others have stored."""
        tidied = uptime()
        while True:
            try:
                if not await self._lease.turn():
                    await self._lease.join()
                if self._doubt:
                    await self._settle_claims()
                if uptime() - tidied > TIDY:
                    tidied = uptime()
                    await self._tidy()
                self._wake()
                await self._lease.listen()
            except QueueError:
                await asyncio.sleep(AGAIN)

    async def _settle_claims(self) -> None:
        """Give back what the database says is ours and nobody here knows of."""

        async def settle(connection: Connection) -> None:
            me = self._lease.epoch
            known = self._claims.of(me)
            there = await statements.claimed(connection, me)
            orphans = {id_: numbers - known.get(id_, set()) for id_, numbers in there.items()}
            await statements.release(connection, me, {id_: found for id_, found in orphans.items() if found})

        self._doubt = False
        try:
            await self._reading.run(settle)
        except QueueError:
            self._doubt = True
            raise

    async def _tidy(self) -> None:
        self._bodies.sweep(set(self._claims))
        before = self._now() - self._lifetime
        query = "DELETE FROM finished WHERE id IN (SELECT id FROM finished WHERE at < %s LIMIT 10000)"
        await self._reading.run(lambda one: one.execute(query, [before]))
        await self._limits.tidy()

    def counters(self, local: Counters) -> Counters:
        """Give counters that all nodes share."""
        self._limits.local = local
        return self._limits

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` at a hint of another node, and every sixth of the lease."""
        self._wake = wake

    def _woken(self) -> None:
        self._wake()

    def _hint(self) -> None:
        """Tell the other nodes soon that there is mail, outside the transaction that stored it."""
        if not self._hinted:
            self._hinted = True
            self._spawn(self._notify())

    async def _notify(self) -> None:
        await asyncio.sleep(HINT)
        self._hinted = False
        with contextlib.suppress(QueueError):
            await self._reading.run(
                lambda one: one.execute("SELECT pg_notify(%s, %s)", [CHANNEL, str(self._lease.epoch)])
            )

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def confirm(self, entry_id: str) -> None:
        """Wait while it is not sure that the lease lasts, or that the database will hear of the end."""
        while True:
            if self._claims.epoch(entry_id) != self._lease.epoch:
                raise ClaimLost("another node has taken over what this one had claimed")
            if self._lease.sure and not self._writer.behind:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN):
                    await self._lease.news()

    def ours(self, entry_id: str) -> bool:
        """Whether nobody else can have taken an entry over."""
        if entry_id not in self._claims:
            return False
        return self._lease.sure and self._claims.epoch(entry_id) == self._lease.epoch

    # In.

    async def add(self, entry: Entry) -> None:
        """Commit an entry together with all others that wait. A cancelled caller does not stop the commit."""
        await asyncio.shield(asyncio.ensure_future(self._add(entry)))

    async def _add(self, entry: Entry) -> None:
        await self._store(Work(), [entry])
        self._hint()

    async def _store(self, work: Work, entries: Sequence[Entry]) -> list[str]:
        """Store new entries with what else is in `work`; large ones come before, and are flipped with it."""
        large = [one for one in entries if _is_large(one)]
        epoch = self._lease.epoch
        try:
            for one in large:
                await self._bodies.receive(one, self._now(), epoch)
                point("queue.flip")
            work.adds = [one for one in entries if not _is_large(one)]
            work.flips = [one.id for one in large]
            work.epoch = work.epoch or (epoch if large else 0)
            gone = await self._writer.store(work)
        except Exception as error:
            for one in large:
                await self._bodies.forget(one.id)
            if isinstance(error, Swept):
                raise QueueError("the other nodes of the queue have taken this one for dead") from error
            raise
        for one in large:
            with contextlib.suppress(OSError):  # the database has the body
                self._bodies.keep(one, self.spool_folder)
        return gone

    async def restore(self, snapshot: Snapshot) -> bool:
        """Store an entry as it was elsewhere."""
        entry = snapshot.entry
        if await self.known([entry.id]):
            return False
        since = [(entry.id, one) for one in entry.recipients if one.state == "held"]
        hidden = replace(entry, message=entry.message.copy())
        await self._bodies.receive(hidden, self._now(), self._lease.epoch)

        async def restore(connection: Connection) -> None:
            await statements.store(connection, since, self._now())
            query = "UPDATE entry SET delivered = %s, numbers = greatest(numbers, %s) WHERE id = %s"
            await connection.execute(query, [snapshot.delivered, snapshot.numbers, entry.id])
            if not await statements.flip(connection, [entry.id], self._lease.epoch):
                raise QueueError("the other nodes of the queue have taken this one for dead")

        try:
            await self._reading.run(restore)
        except BaseException:
            await self._bodies.forget(entry.id)
            raise
        self._bodies.keep(entry, self.spool_folder)
        self._hint()
        return True

    async def known(self, ids: Collection[str]) -> set[str]:
        """Give those of the ids that the queue holds, or has finished within the lifetime."""
        since = self._now() - self._lifetime
        return await self._reading.run(lambda one: statements.known(one, rows.ids_of(ids), since))

    async def remember(self, ended: Mapping[str, float]) -> None:
        """Take messages for finished that ended elsewhere."""
        await self._reading.run(lambda one: statements.remember(one, ended))

    def views(self) -> Sequence[View]:
        """Open the database to be read."""
        return [DatabaseView(self._database)]

    # Claims.

    async def claim(self, now: float, limit: int, busy: Mapping[str, int], per_lane: int) -> list[Entry]:
        """Claim what is due; a body that is not here comes with a later call, when it was brought."""
        found = [self._fetched.popleft() for _ in range(min(limit, len(self._fetched)))]
        limit -= len(found)
        if limit > 0 and self._lease.sure:
            rooms = {rows.lane_of(name): max(0, per_lane - count) for name, count in busy.items()}
            found += await self._claimed(lambda one: self._claim(one, now, limit, rooms, per_lane))
        return found

    async def _claim(
        self, connection: Connection, now: float, limit: int, rooms: Mapping[int, int], per_lane: int
    ) -> dict[str, list[EntryRecipient]]:
        me = await self._living(connection)
        not_these = self._claims.before(me)
        taken, self._cursor = await statements.claim(
            connection, me, self._cursor, now, limit, rooms, per_lane, not_these
        )
        return taken

    async def _claimed(self, work: Callable[[Connection], object], *, whole: bool = False) -> list[Entry]:
        """Note what a transaction has claimed; gives the entries whose bodies are here, or all of them."""
        noted: dict[str, list[EntryRecipient]] = {}

        async def claim(connection: Connection) -> list[rows.Row]:
            noted.update(await work(connection))  # type: ignore[misc]
            for id_, some in noted.items():
                self._claims.add(id_, [one.number for one in some], self._lease.epoch)
            if noted:
                point("queue.claim")
            return await statements.load(connection, list(noted)) if noted else []

        try:
            found = await self._reading.run(claim)
        except BaseException:
            self._doubt = True
            for id_, some in noted.items():
                self._claims.drop(id_, [one.number for one in some])
            raise
        entries = [self._entry(row, noted[row[0]]) for row in found]
        self._sole.update(row[0] for row in found if row[-1] == 1)
        absent = [entry for entry in entries if self._is_absent(entry)]
        if whole:
            for entry in absent:
                await self._bring(entry)
            return entries
        for entry in absent:
            self._spawn(self._bring_later(entry))
        return [entry for entry in entries if entry not in absent]

    async def _living(self, connection: Connection) -> int:
        """Give our epoch, which cannot end before this transaction does."""
        me = self._lease.epoch
        if await (await connection.execute(_ALIVE, [me])).fetchone() is None:
            raise QueueError("the other nodes of the queue have taken this one for dead")
        return me

    def _entry(self, row: rows.Row, recipients: Sequence[EntryRecipient]) -> Entry:
        size, header, body = row[7:10]
        content = body if size is None else FileBody(self._bodies.path(row[0]), size)
        return rows.entry_of(row, recipients, Message(header, content))

    def _is_absent(self, entry: Entry) -> bool:
        body = entry.message.body
        return isinstance(body, FileBody) and self._bodies.here(entry.id, body.size) is None

    async def _bring(self, entry: Entry) -> None:
        body = entry.message.body
        if isinstance(body, FileBody):
            async with self._fetching:
                await self._bodies.fetch(entry.id, body.size)

    async def _bring_later(self, entry: Entry) -> None:
        try:
            await self._bring(entry)
        except (QueueError, OSError, Swept):
            with contextlib.suppress(QueueError):
                await self.release_claims([entry])
            return
        self._fetched.append(entry)
        self._wake()

    async def take(self, wanted: Filter, limit: int = 1000) -> list[Entry]:
        """Claim queued and held recipients whatever their due time."""

        async def take(connection: Connection) -> dict[str, list[EntryRecipient]]:
            me = await self._living(connection)
            free = me, self._claims.before(me)
            noted: dict[str, list[EntryRecipient]] = {}
            after: str | None = ""
            while after is not None and (left := limit - sum(map(len, noted.values()))) > 0:
                page = await operations.change(
                    connection, wanted, after, operations.taken(), self._now(), left, free
                )
                for entry in page.touched:
                    numbers = page.numbers[entry.id]
                    noted[entry.id] = [one for one in entry.recipients if one.number in numbers]
                after = page.last
            await statements.own(connection, me, {id_: len(some) for id_, some in noted.items()})
            return noted

        return await self._claimed(take, whole=True)

    async def release_claims(self, entries: Sequence[Entry]) -> None:
        """Give claimed recipients back; should the database not hear it, it is told at the next turn."""
        point("queue.release")
        me = self._lease.epoch
        ours = self._claims.of(me)
        given = {id_: numbers for id_, numbers in counts(entries).items() if id_ in ours}
        for id_, numbers in counts(entries).items():
            self._drop(id_, numbers)
        try:
            await self._reading.run(lambda one: statements.release(one, me, given))
        except QueueError:
            self._doubt = True
            raise

    # Out.

    async def finish(self, finishes: Sequence[Finish]) -> None:
        """End attempts in one transaction. A cancelled caller does not stop the commit."""
        await asyncio.shield(asyncio.ensure_future(self._finish(finishes)))

    async def _finish(self, finishes: Sequence[Finish]) -> None:
        epochs = {self._claims.epoch(one.entry.id) for one in finishes if one.recipients}
        if len(epochs) > 1:
            raise ClaimLost("another node has taken over what this one had claimed")
        births = [birth for one in finishes for birth in one.births]
        gone = await self._store(Work(finishes=finishes, epoch=max(epochs, default=0)), births)
        for one in finishes:
            self._drop(one.entry.id, [r.number for r in one.recipients])
        for id_ in gone:
            self._bodies.drop(id_)
        if births:
            self._hint()

    def _drop(self, entry_id: str, numbers: Collection[int]) -> None:
        """Note the end of claims; with the last of an entry its body goes from here."""
        if self._claims.drop(entry_id, numbers):
            self._sole.discard(entry_id)
            self._bodies.drop(entry_id)

    async def rest(self, entry_id: str, numbers: Collection[int]) -> Rest:
        """Tell what the entry holds beside these recipients."""
        if entry_id in self._sole and numbers:
            return Rest(0)
        found = await self._reading.run(lambda one: statements.rest(one, entry_id, numbers))
        if found is None:
            raise ClaimLost("another node has ended this message")
        return found

    async def split(self, entry: Entry, number: int, recipients: Sequence[EntryRecipient]) -> None:
        """Put several queued recipients in the place of a claimed one."""
        await asyncio.shield(asyncio.ensure_future(self._split(entry, number, recipients)))

    async def _split(self, entry: Entry, number: int, recipients: Sequence[EntryRecipient]) -> None:
        me = self._lease.epoch
        if self._claims.epoch(entry.id) != me:
            raise ClaimLost("another node has taken over what this one had claimed")

        async def split(connection: Connection) -> None:
            if not await statements.let_go(connection, me, {entry.id: 1}):
                raise ClaimLost("another node has taken over what this one had claimed")
            query = (
                "UPDATE entry SET numbers = numbers + %s, open = open + %s WHERE id = %s RETURNING numbers"
            )
            many = len(recipients)
            cursor = await connection.execute(query, [many, many - 1, entry.id])
            first = ((await cursor.fetchone()) or (0,))[0] - many
            await statements.remove(connection, entry.id, number)
            point("queue.split")
            numbered = [(entry, replace(one, number=first + i)) for i, one in enumerate(recipients)]
            for start in range(0, many, RECIPIENTS):
                await statements.add_recipients(connection, numbered[start : start + RECIPIENTS], self._now())

        self._sole.discard(entry.id)
        await self._reading.run(split)
        self._claims.drop(entry.id, [number])
        self._hint()

    # Questions, and what people do.

    async def next_due(self) -> float | None:
        """When the earliest unclaimed recipient is due."""
        if self._fetched:
            return 0.0
        return await self._reading.run(statements.next_due)

    async def get(self, entry_id: str) -> Entry | None:
        """Give one entry with its message."""

        async def get(connection: Connection) -> Entry | None:
            ids = rows.ids_of([entry_id])
            found = await statements.load(connection, ids)
            if not found:
                return None
            recipients = await statements.recipients_of(connection, ids)
            return self._entry(found[0], recipients.get(entry_id, []))

        entry = await self._asking.run(get)
        if entry is not None and self._is_absent(entry):
            try:
                await self._bring(entry)
            except Swept:
                return None
        return entry

    async def retry(self, wanted: Filter) -> list[Entry]:
        """Make queued recipients due now."""
        return await self._change(wanted, operations.retried(self._now()))

    async def hold(self, wanted: Filter) -> list[Entry]:
        """Move queued recipients to held."""
        return await self._change(wanted, operations.held(self._now()))

    async def release(self, wanted: Filter) -> list[Entry]:
        """Move held recipients to queued."""
        return await self._change(wanted, operations.released(self._now()))

    async def redirect(self, wanted: Filter, to: Address) -> list[Entry]:
        """Give queued and held recipients another address."""
        change = lambda one: replace(one, recipient=one.recipient.redirected(to))  # noqa: E731
        return await self._change(wanted, operations.readdressed(self._now(), change))

    async def reroute(self, wanted: Filter) -> list[Entry]:
        """Give queued and held recipients the address that the sender wrote."""
        change = lambda one: replace(one, recipient=one.recipient.rerouted())  # noqa: E731
        return await self._change(wanted, operations.readdressed(self._now(), change))

    async def _change(self, wanted: Filter, what: Change) -> list[Entry]:
        touched = await self._pages(
            lambda one, after: operations.change(one, wanted, after, what, self._now())
        )
        self._hint()
        return touched

    async def delete(self, wanted: Filter) -> list[Entry]:
        """Forget whole entries, without a bounce."""
        return await self._pages(lambda one, after: operations.delete(one, wanted, after))

    async def _pages(
        self, work: Callable[[Connection, str], object], after: str | None = "", limit: int | None = None
    ) -> list[Entry]:
        found: list[Entry] = []
        while after is not None and (limit is None or len(found) < limit):
            page: Page = await self._asking.run(partial(_turned, work, after))
            found += page.touched
            after = page.last
        return found[:limit]

    async def suspend(self, suspension: Suspension) -> bool:
        """Keep a suspension."""
        more = json.dumps(asdict(suspension))
        cursor = await self._reading.run(lambda one: one.execute(_SUSPEND, [suspension.name, more]))
        return cursor.rowcount > 0

    async def resume(self, name: str) -> Suspension | None:
        """Forget a suspension."""
        query = "DELETE FROM suspension WHERE name = %s RETURNING more"
        found = await self._suspensions(query, [name])
        self._hint()
        return found[0] if found else None

    async def suspended(self) -> list[Suspension]:
        """Give the suspensions that run."""
        found = await self._suspensions("SELECT more FROM suspension", [])
        return sorted((one for one in found if one.runs(self._now())), key=lambda one: one.name)

    async def _suspensions(self, query: str, values: Sequence[object]) -> list[Suspension]:
        async def ask(connection: Connection) -> list[Suspension]:
            cursor = await connection.execute(query.encode(), values)
            return [Suspension(**json.loads(more)) for (more,) in await cursor.fetchall()]

        return await self._reading.run(ask)

    async def stats(self) -> list[Stats]:
        """Count the recipients that have not ended, by domain, state and age."""
        bounds = [float(minutes) for minutes in AGES]
        found: dict[tuple[bytes, str], tuple[list[int], float]] = {}
        for domain, state, column, count, oldest in await self._asking.run(
            lambda one: statements.stats(one, self._now(), bounds)
        ):
            ages, birth = found.get((bytes(domain), state), ([0] * (len(AGES) + 1), oldest))
            ages[column] += count
            found[bytes(domain), state] = ages, min(birth, oldest)
        return [
            Stats(Address.decode(domain), state, sum(ages), birth, ages)
            for (domain, state), (ages, birth) in sorted(found.items())
        ]

    async def accepted(self, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give what this worker has stored, without bodies."""
        mine = partial(operations.matching, mine=True)
        return await self._pages(lambda one, after: mine(one, Filter(), after), after, limit)

    async def list(self, wanted: Filter, limit: int = 1000, after: str = "") -> list[Entry]:
        """Give entries in order of id, without bodies."""
        return await self._pages(lambda one, after: operations.matching(one, wanted, after), after, limit)


async def _turned(work: Callable[[Connection, str], object], after: str, connection: Connection) -> Page:
    page: Page = await work(connection, after)  # type: ignore[misc]
    return page


def _is_large(entry: Entry) -> bool:
    """Whether an entry does not go into one statement."""
    return isinstance(entry.message.body, FileBody) or len(entry.recipients) > RECIPIENTS
