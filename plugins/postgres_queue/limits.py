"""Counters, slots and marks of all nodes: what is asked in one turn of the loop goes in one round trip.

A limit must not stop mail: while the database does not answer, each node counts for itself, from zero.
Slots of sessions are each node's own at all times: they guard its memory and its file descriptors, and a
flood of connections must not become a flood of questions to the database that holds the mail.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from gateway import Counters, Mark

from . import rows
from .asking import Asking, Away

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .asking import Statement
    from .lease import Lease
    from .links import Link

#: What begins so is a slot of sessions.
_OWN = ("sessions", "beginning/")
#: A longer key is known by its digest; an index takes no more.
_LONGEST_KEY = 500
#: Rows that each table may have at most.
_ROWS = 1_000_000
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_HIT = f"""
INSERT INTO hits AS h VALUES (%s, %s, {_NOW}, %s, 0)
ON CONFLICT (key) DO UPDATE SET (length, started, count, former) = (
  SELECT excluded.length,
    CASE WHEN passed < 0 THEN excluded.started ELSE h.started + passed * h.length END,
    CASE passed WHEN 0 THEN h.count + excluded.count ELSE excluded.count END,
    CASE passed WHEN 0 THEN h.former WHEN 1 THEN h.count ELSE 0 END
  FROM (SELECT CASE WHEN h.length = excluded.length
    THEN greatest(0, floor((excluded.started - h.started) / h.length)) ELSE -1 END) AS since (passed)
)
RETURNING count + round(former * greatest(0, 1 - ({_NOW} - started) / length))::bigint
"""  # noqa: S608 - own words
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended(encode(%s, 'hex'), 0))"
_TAKE = """
INSERT INTO slots AS s SELECT %s, epoch, 1 FROM node
WHERE epoch = %s AND (SELECT coalesce(sum(taken), 0) FROM slots WHERE key = %s) < %s
ON CONFLICT (key, owner) DO UPDATE SET taken = s.taken + 1 RETURNING 1
"""
_GIVE = (
    "UPDATE slots SET taken = taken - 1 WHERE key = %s AND owner = %s",
    "DELETE FROM slots WHERE key = %s AND owner = %s AND taken <= 0",
)
_MARK = f"""
INSERT INTO mark VALUES (%s, {_NOW} + %s, %s)
ON CONFLICT (key) DO UPDATE SET until = excluded.until, note = excluded.note
"""  # noqa: S608 - own words
_MARKED = f"SELECT key, until, note FROM mark WHERE key = %s AND until > {_NOW}"  # noqa: S608 - own words
_UNMARK = "DELETE FROM mark WHERE key = %s"
_MARKS = f"SELECT key, until, note FROM mark WHERE substring(key FOR %s) = %s AND until > {_NOW} ORDER BY key"  # noqa: S608 - own words
_SPENT = "DELETE FROM {0} WHERE key IN (SELECT key FROM {0} WHERE {1} < {2} FOR UPDATE SKIP LOCKED)"
_TOO_MANY = "DELETE FROM {0} WHERE key IN (SELECT key FROM {0} ORDER BY {1} DESC OFFSET {2})"
_TIDY = (
    _SPENT.format("hits", "started + 2 * length", _NOW),
    _SPENT.format("mark", "until", _NOW),
    _TOO_MANY.format("hits", "started", _ROWS),
    _TOO_MANY.format("mark", "until", _ROWS),
)


class NodeCounters(Counters):
    """Counters of a worker of several nodes; `local` is asked for what is not shared, or cannot be."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.local: Counters
        self._lease: Lease
        self._asking = Asking(tell)
        #: Slots that the database knows of -> the epochs in which they were taken.
        self._taken: defaultdict[str, list[int]] = defaultdict(list)

    def join(self, link: Link, lease: Lease) -> None:
        """Share from now on."""
        self._lease = lease
        self._asking.begin(link)

    async def leave(self) -> None:
        """Share no more; the slots go with the epoch."""
        await self._asking.end()

    async def hit(self, key: str, window: float, amount: int = 1) -> int:
        """Count on all nodes."""
        try:
            ((count,),) = await self._ask("hits", key, (_HIT, [_key(key), window, amount]))
        except Away:
            return await self.local.hit(key, window, amount)
        return int(count)

    async def take(self, key: str, limit: int) -> bool:
        """Take one of the slots that all nodes have together."""
        if key.startswith(_OWN):
            return await self.local.take(key, limit)
        me = self._lease.epoch if self._asking.begun else 0
        turn, take = (_TURN, [_key(key)]), (_TAKE, [_key(key), me, _key(key), limit])
        order = "slots", _key(key)
        late = partial(self._asking.owe, order, _given(key, me))
        try:
            found = await self._asking.ask(order, (turn, take), late)
        except Away:
            return await self.local.take(key, limit)
        if found:
            self._taken[key].append(me)
        return bool(found)

    async def take_each(self, wanted: Mapping[str, int]) -> str:
        """Take a slot of each key, or none; those of sessions in one call."""
        if all(key.startswith(_OWN) for key in wanted):
            return await self.local.take_each(wanted)
        return await super().take_each(wanted)

    async def give_each(self, keys: Sequence[str]) -> None:
        """Give a slot of each key back."""
        if self._taken.keys().isdisjoint(keys):
            return await self.local.give_each(keys)
        return await super().give_each(keys)

    async def give(self, key: str) -> None:
        """Give a slot back to where it was taken."""
        if not self._taken.get(key):
            await self.local.give(key)
            return
        epoch = self._taken[key].pop()
        if not self._taken[key]:
            del self._taken[key]
        self._asking.owe(("slots", _key(key)), _given(key, epoch))

    async def mark(self, key: str, seconds: float, note: str = "") -> None:
        """Set a mark for all nodes."""
        try:
            await self._ask("mark", key, (_MARK, [_key(key), seconds, note]))
        except Away:
            await self.local.mark(key, seconds, note)

    async def marked(self, key: str) -> Mark | None:
        """Give the mark of a key while it lasts."""
        try:
            found = await self._ask("mark", key, (_MARKED, [_key(key)]))
        except Away:
            return await self.local.marked(key)
        return _mark(found[0]) if found else None

    async def unmark(self, key: str) -> None:
        """Take a mark away from all nodes."""
        await self.local.unmark(key)
        try:
            await self._ask("mark", key, (_UNMARK, [_key(key)]))
        except Away:
            return

    async def marks(self, prefix: str = "") -> list[Mark]:
        """Give the marks that last, sorted, whose key begins so."""
        start = rows.encode(prefix)
        try:
            return [_mark(row) for row in await self._ask("mark", "", (_MARKS, [len(start), start]))]
        except Away:
            return await self.local.marks(prefix)

    async def tidy(self) -> None:
        """Forget what counts no more, and the oldest of what is too much."""
        for statement in _TIDY:
            with suppress(Away):
                await self._ask("", "", (statement, []))

    async def _ask(self, table: str, key: str, statement: Statement) -> list[rows.Row]:
        return await self._asking.ask((table, _key(key)), [statement])


def _given(key: str, epoch: int) -> list[Statement]:
    return [(statement, [_key(key), epoch]) for statement in _GIVE]


def _key(key: str) -> bytes:
    found = rows.encode(key)
    return found if len(found) <= _LONGEST_KEY else sha256(found).digest()


def _mark(row: rows.Row) -> Mark:
    key, until, note = row
    return Mark(bytes(key).decode("utf-8", "surrogateescape"), until, note)
