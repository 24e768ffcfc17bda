"""What is said to the database about entries, call by call; the caller holds the transaction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

from gateway import point
from gateway.queue import ENDED, Rest

from . import rows
from .rows import ENTRY, ENTRY_COLUMNS, HEAD, RECIPIENT, RECIPIENT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from gateway import Entry, EntryRecipient
    from gateway.queue import Filter, Finish

    from .links import Connection

#: How many recipients one claim may move from `waiting` to `ready`, and how many of a lane it looks at.
PROMOTED, SEEN = 500, 5000
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_FIRST_ID = str(UUID(int=0))

_PROMOTE = """
UPDATE recipient SET state = 'ready' WHERE state = 'waiting' AND (entry, number) IN (
  SELECT entry, number FROM recipient WHERE state = 'waiting' AND due <= %s ORDER BY due LIMIT %s)
"""
#: Hops over the lanes, and takes of each what it may have; entries of other owners are passed over.
_CLAIM = f"""
WITH RECURSIVE lanes (lane) AS (
  (SELECT lane FROM recipient WHERE state = 'ready' AND lane > %(above)s AND lane <= %(last)s
   ORDER BY lane LIMIT 1)
  UNION ALL
  SELECT (SELECT r.lane FROM recipient r WHERE r.state = 'ready' AND r.lane > lanes.lane
          AND r.lane <= %(last)s ORDER BY r.lane LIMIT 1)
  FROM lanes WHERE lanes.lane IS NOT NULL
), picked AS MATERIALIZED (
  SELECT these.entry, these.number FROM lanes
  LEFT JOIN unnest(%(busy)s::bigint[], %(rooms)s::int[]) AS busy (lane, room) USING (lane)
  CROSS JOIN LATERAL (
    SELECT r.entry, r.number FROM (
      SELECT entry, number FROM recipient
      WHERE state = 'ready' AND recipient.lane = lanes.lane ORDER BY entry, number LIMIT {SEEN}
    ) r JOIN entry e ON e.id = r.entry
    WHERE e.state = 'queued' AND (e.owner IS NULL OR e.owner = %(me)s) AND e.id <> ALL(%(not_these)s::uuid[])
    ORDER BY r.entry, r.number LIMIT greatest(0, coalesce(busy.room, %(per_lane)s))
    FOR UPDATE OF e SKIP LOCKED
  ) these WHERE lanes.lane IS NOT NULL LIMIT %(limit)s
)
UPDATE recipient SET state = 'attempting' FROM picked
WHERE recipient.entry = picked.entry AND recipient.number = picked.number AND recipient.state = 'ready'
RETURNING {RECIPIENT.replace("entry", "recipient.entry", 1).replace("number", "recipient.number", 1)}, lane
"""  # noqa: S608 - own words
_OWN = """
UPDATE entry SET owner = %s, claimed = claimed + n FROM unnest(%s::uuid[], %s::int[]) AS taken (entry, n)
WHERE id = taken.entry
"""
_LET_GO = """
UPDATE entry SET claimed = claimed - n, owner = CASE WHEN claimed <= n THEN NULL ELSE owner END
FROM unnest(%s::uuid[], %s::int[]) AS given (entry, n)
WHERE id = given.entry AND owner = %s RETURNING id::text
"""
#: What was held when a person took it is held again: its `due` says so. Wants FROM and WHERE.
GIVE_BACK = """
WITH back AS (
  UPDATE recipient SET state = CASE WHEN due < 0 THEN 'held' ELSE 'waiting' END, due = abs(due) {}
  RETURNING recipient.entry, recipient.state
), held AS (SELECT entry, count(*) AS n FROM back WHERE state = 'held' GROUP BY entry)
UPDATE entry SET held = entry.held + n FROM held WHERE entry.id = held.entry
"""
_NEXT = """
SELECT coalesce((SELECT due FROM recipient WHERE state = 'ready' LIMIT 1),
                (SELECT min(due) FROM recipient WHERE state = 'waiting'))
"""
_FORGET = """
WITH gone AS (DELETE FROM entry WHERE id = ANY(%s::uuid[]) RETURNING id),
recipients AS (DELETE FROM recipient USING gone WHERE entry = gone.id)
DELETE FROM body USING gone WHERE entry = gone.id
"""
_STORE = """
UPDATE recipient SET state = %s, due = %s, attempts = %s, address = %s, more = %s
WHERE entry = %s AND number = %s
"""
_FAILED = f"SELECT {RECIPIENT} FROM recipient WHERE entry = %s AND state IN ('failed', 'expired')"  # noqa: S608 - own words
_STATS = """
SELECT r.domain, CASE WHEN r.state IN ('ready', 'waiting') THEN 'queued' ELSE r.state END,
  width_bucket((%s - e.birth) / 60, %s::float8[]), count(*), min(e.birth)
FROM recipient r JOIN entry e ON e.id = r.entry
WHERE e.state = 'queued' AND r.state NOT IN ('failed', 'expired') GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""


def _insert(table: str, columns: Mapping[str, str]) -> str:
    arrays = ", ".join(f"%b::{kind if kind != 'uuid' else 'text'}[]" for kind in columns.values())
    values = ", ".join(f"{name}::{kind}" for name, kind in columns.items())
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM unnest({arrays}) AS new ({names})"  # noqa: S608 - own words


_ADD_ENTRIES = _insert("entry", ENTRY_COLUMNS)
_ADD_RECIPIENTS = _insert("recipient", RECIPIENT_COLUMNS)


async def add(
    connection: Connection,
    entries: Sequence[Entry],
    now: float,
    state: str = "queued",
    owner: int | None = None,
) -> None:
    """Store entries; recipients of one that is still received come by `add_recipients`."""
    if not entries:
        return
    made = [rows.entry_row(one, state, owner) for one in entries]
    await connection.execute(_ADD_ENTRIES.encode(), [list(column) for column in zip(*made, strict=True)])
    point("queue.add")
    if state == "queued":
        await add_recipients(connection, [(entry, one) for entry in entries for one in entry.recipients], now)


async def add_recipients(
    connection: Connection, some: Sequence[tuple[Entry, EntryRecipient]], now: float
) -> None:
    """Store recipients."""
    if some:
        made = [rows.recipient_row(entry, one, now) for entry, one in some]
        await connection.execute(
            _ADD_RECIPIENTS.encode(), [list(column) for column in zip(*made, strict=True)]
        )


async def flip(connection: Connection, ids: Sequence[str], me: int) -> bool:
    """Commit entries that were received in parts; False when one was swept meanwhile."""
    query = (
        "UPDATE entry SET state = 'queued', owner = NULL "
        "WHERE id = ANY(%s::uuid[]) AND state = 'receiving' AND owner = %s RETURNING id"
    )
    cursor = await connection.execute(query, [list(ids), me])
    return len(await cursor.fetchall()) == len(ids)


async def forget(connection: Connection, ids: Iterable[str]) -> None:
    """Drop entries, with all that hangs on them."""
    await connection.execute(_FORGET, [list(ids)])


async def claim(
    connection: Connection,
    me: int,
    start: int,
    now: float,
    limit: int,
    rooms: Mapping[int, int],
    per_lane: int,
    not_these: Collection[str],
) -> tuple[dict[str, list[EntryRecipient]], int]:
    """Claim ready recipients, lane by lane, from where the last claim stopped; gives where this one did."""
    await connection.execute(_PROMOTE, [now, PROMOTED])
    found: list[rows.Row] = []
    for above, last in ((start, _HIGHEST), (_LOWEST, start)):
        if limit <= len(found):
            break
        values = {
            "above": above,
            "last": last,
            "busy": list(rooms),
            "rooms": list(rooms.values()),
            "me": me,
            "not_these": list(not_these),
            "per_lane": per_lane,
            "limit": limit - len(found),
        }
        part = await (await connection.execute(_CLAIM, values)).fetchall()
        start = max((row[-1] for row in part), default=start)
        found += part
    taken = rows.by_entry(row[:-1] for row in found)
    await own(connection, me, {id_: len(some) for id_, some in taken.items()})
    return taken, start


async def own(connection: Connection, me: int, counts: Mapping[str, int]) -> None:
    """Note who holds claims on entries, and how many more."""
    if counts:
        await connection.execute(_OWN, [me, list(counts), list(counts.values())])


async def let_go(connection: Connection, me: int, counts: Mapping[str, int]) -> set[str]:
    """Note that claims have ended; gives the entries that were ours."""
    if not counts:
        return set()
    cursor = await connection.execute(_LET_GO, [list(counts), list(counts.values()), me])
    return {id_ for (id_,) in await cursor.fetchall()}


async def release(connection: Connection, me: int, claims: Mapping[str, Collection[int]]) -> None:
    """Give claimed recipients back, to wait for their time; what another has taken over is his."""
    ours = await let_go(connection, me, {id_: len(numbers) for id_, numbers in sorted(claims.items())})
    pairs = [(id_, number) for id_ in ours for number in claims[id_]]
    query = GIVE_BACK.format(
        "FROM unnest(%s::uuid[], %s::int[]) AS given (e, n) "
        "WHERE recipient.entry = e AND number = n AND state = 'attempting'"
    )
    if pairs:
        await connection.execute(query, [[id_ for id_, _ in pairs], [number for _, number in pairs]])


async def claimed(connection: Connection, me: int) -> dict[str, set[int]]:
    """Give all that an epoch has claimed."""
    query = (
        "SELECT entry::text, number FROM recipient JOIN entry e ON e.id = entry "
        "WHERE e.owner = %s AND recipient.state = 'attempting'"
    )
    found: dict[str, set[int]] = {}
    for id_, number in await (await connection.execute(query, [me])).fetchall():
        found.setdefault(id_, set()).add(number)
    return found


async def lock(connection: Connection, ids: Iterable[str], me: int) -> dict[str, int]:
    """Lock entries that are ours or nobody's, in order; gives how many of their recipients are open."""
    query = (
        "SELECT id::text, open FROM entry WHERE id = ANY(%s::uuid[]) AND state = 'queued' "
        "AND (owner IS NULL OR owner = %s) ORDER BY id FOR UPDATE"
    )
    cursor = await connection.execute(query, [sorted(set(ids)), me])
    return dict(await cursor.fetchall())


async def finish(
    connection: Connection, me: int, finishes: Sequence[Finish], left: Mapping[str, int], now: float
) -> list[str]:
    """End attempts of entries that are locked; `left`: their open recipients. Gives the ids of those over."""
    point("queue.finish")
    open_, delivered, ended = Counter(left), Counter[str](), Counter[str]()
    for one in finishes:
        id_ = one.entry.id
        over = sum(r.state in ENDED for r in one.recipients)
        open_[id_] -= over
        ended[id_] += over
        delivered[id_] += sum(r.state == "delivered" for r in one.recipients)
    gone = [id_ for id_ in left if open_[id_] <= 0]
    if gone:
        point("queue.forget")
        await forget(connection, gone)
        query = "INSERT INTO finished SELECT unnest(%s::uuid[]), %s ON CONFLICT DO NOTHING"
        await connection.execute(query, [gone, now])
    others = [one for one in finishes if open_[one.entry.id] > 0]
    if others:
        point("queue.settle")
        await _go_on(connection, others, now)
        ids = list(dict.fromkeys(one.entry.id for one in others))
        query = (
            "UPDATE entry SET open = open - o, delivered = delivered + d "
            "FROM unnest(%s::uuid[], %s::int[], %s::int[]) AS e (e, o, d) WHERE id = e"
        )
        await connection.execute(query, [ids, [ended[i] for i in ids], [delivered[i] for i in ids]])
        counts = Counter({one.entry.id: 0 for one in others})
        for one in others:
            counts[one.entry.id] += len(one.recipients)
        await let_go(connection, me, {id_: count for id_, count in counts.items() if count})
    return gone


async def _go_on(connection: Connection, finishes: Sequence[Finish], now: float) -> None:
    """Store the recipients of entries that are not over."""
    pairs = [(one.entry.id, r) for one in finishes for r in one.recipients]
    away = [(id_, r.number) for id_, r in pairs if r.state == "delivered"]
    if away:
        query = (
            "DELETE FROM recipient USING unnest(%s::uuid[], %s::int[]) AS gone (e, n) "
            "WHERE entry = e AND number = n"
        )
        await connection.execute(query, [[id_ for id_, _ in away], [number for _, number in away]])
    await store(connection, [(id_, r) for id_, r in pairs if r.state != "delivered"], now)
    if told := [one.entry.id for one in finishes if one.bounced]:
        query = "DELETE FROM recipient WHERE entry = ANY(%s::uuid[]) AND state IN ('failed', 'expired')"
        await connection.execute(query, [told])


async def store(connection: Connection, some: Iterable[tuple[str, EntryRecipient]], now: float) -> None:
    """Write recipients as they are now."""
    made = [
        (
            rows.column_of(one, now),
            one.due,
            one.attempts,
            rows.encode(one.recipient.address),
            rows.more_of(one),
            id_,
            one.number,
        )
        for id_, one in some
    ]
    if made:
        await connection.cursor().executemany(_STORE, made)


async def remove(connection: Connection, entry_id: str, number: int) -> None:
    """Drop one recipient."""
    await connection.execute("DELETE FROM recipient WHERE entry = %s AND number = %s", [entry_id, number])


async def rest(connection: Connection, entry_id: str, numbers: Collection[int]) -> Rest | None:
    """Tell what an entry holds beside these recipients; None when it is not there."""
    query = "SELECT open, held, delivered FROM entry WHERE id = %s"
    row = await (await connection.execute(query, [entry_id])).fetchone()
    if row is None:
        return None
    left, held, delivered = row
    others = left - held - len(numbers)
    if others:
        return Rest(others, held, delivered)
    failed = await (await connection.execute(_FAILED.encode(), [entry_id])).fetchall()
    return Rest(0, held, delivered, [rows.recipient_of(row) for row in failed])


async def next_due(connection: Connection) -> float | None:
    """When the earliest recipient is due."""
    row = await (await connection.execute(_NEXT)).fetchone()
    due: float | None = row[0] if row else None
    return due


async def load(connection: Connection, ids: Sequence[str]) -> list[rows.Row]:
    """Read whole entries, as rows of ENTRY."""
    query = f"SELECT {ENTRY} FROM entry WHERE id = ANY(%s::uuid[]) AND state = 'queued' ORDER BY id"  # noqa: S608 - own words
    return list(await (await connection.execute(query.encode(), [list(ids)], binary=True)).fetchall())


async def heads(
    connection: Connection,
    wanted: Filter,
    after: str,
    limit: int,
    *,
    locked: bool = False,
    free: tuple[int, Collection[str]] | None = None,
    mine: bool = False,
) -> list[tuple[rows.Row, list[EntryRecipient]]]:
    """Read entries that may be wanted, in order of id, as rows without content, each with its recipients.

    `free`: only those that this epoch may claim, and without these. `mine`: only those stored by this worker.
    """
    terms = ["state = 'queued'", "id > %s"]
    values: list[object] = [after or _FIRST_ID]
    if wanted.ids:
        terms.append("id = ANY(%s::uuid[])")
        values.append(rows.ids_of(wanted.ids))
    if wanted.born_before:
        terms.append("birth < %s")
        values.append(wanted.born_before)
    if wanted.born_after:
        terms.append("birth >= %s")
        values.append(wanted.born_after)
    if free is not None:
        terms.append("(owner IS NULL OR owner = %s) AND id <> ALL(%s::uuid[])")
        values += [free[0], list(free[1])]
    if mine:
        terms.append("node = current_setting('application_name')")
    query = f"SELECT {HEAD} FROM entry WHERE {' AND '.join(terms)} ORDER BY id LIMIT {limit:d}"  # noqa: S608 - own words
    query += " FOR UPDATE" if locked else ""
    found = await (await connection.execute(query.encode(), values, binary=True)).fetchall()
    recipients = await recipients_of(connection, [row[0] for row in found])
    return [(row, recipients.get(row[0], [])) for row in found]


async def recipients_of(connection: Connection, ids: Sequence[str]) -> dict[str, list[EntryRecipient]]:
    """Read all recipients of entries."""
    query = f"SELECT {RECIPIENT} FROM recipient WHERE entry = ANY(%s::uuid[])"  # noqa: S608 - own words
    cursor = await connection.execute(query.encode(), [list(ids)], binary=True)
    return rows.by_entry(await cursor.fetchall())


async def known(connection: Connection, ids: Collection[str], since: float) -> set[str]:
    """Give those of the ids that are queued, or were finished since a time."""
    query = (
        "SELECT id::text FROM entry WHERE id = ANY(%s::uuid[]) AND state = 'queued' "
        "UNION SELECT id::text FROM finished WHERE id = ANY(%s::uuid[]) AND at >= %s"
    )
    cursor = await connection.execute(query, [list(ids), list(ids), since])
    return {id_ for (id_,) in await cursor.fetchall()}


async def remember(connection: Connection, ended: Mapping[str, float]) -> None:
    """Take messages for finished."""
    query = "INSERT INTO finished SELECT unnest(%s::uuid[]), unnest(%s::float8[]) ON CONFLICT DO NOTHING"
    await connection.execute(query, [list(ended), list(ended.values())])


async def stats(connection: Connection, now: float, bounds: Sequence[float]) -> list[rows.Row]:
    """Count recipients by domain, state and age."""
    return list(await (await connection.execute(_STATS, [now, list(bounds)])).fetchall())
