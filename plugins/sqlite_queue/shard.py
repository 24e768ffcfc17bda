"""What one SQLite file can do, call by call. Synchronous; the caller holds the transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import Message, first_id, point
from gateway.queue import AGES, ENDED, Rest, Snapshot

from . import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import apsw

    from gateway import Entry, EntryRecipient, Recipient
    from gateway.queue import Finish

#: How many recipients one claim may move from `waiting` to `ready`.
PROMOTED = 500
_OPEN = "('ready', 'waiting', 'attempting', 'held')"

_ADD_ENTRY = "INSERT INTO entry VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_RECIPIENT = "INSERT INTO recipient VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE_RECIPIENT = "DELETE FROM recipient WHERE entry = ? AND number = ?"
_STATE = "UPDATE recipient SET state = ? WHERE entry = ? AND number = ?"
#: What was held when a person took it is held again: its `due` says so.
_GIVE_BACK = """
UPDATE recipient SET state = CASE WHEN due < 0 THEN 'held' ELSE 'waiting' END, due = abs(due)
"""
_TAKE_HELD = "UPDATE recipient SET due = -due WHERE entry = ? AND number = ?"
_END = "UPDATE recipient SET state = ?, due = ?, attempts = ?, more = ? WHERE entry = ? AND number = ?"
_READDRESS = "UPDATE recipient SET state = ?, due = ?, address = ?, more = ? WHERE entry = ? AND number = ?"
_NOT_HELD = """
UPDATE recipient SET more = json_remove(more, '$.held', '$.held_by')
WHERE entry = ? AND number = ? AND more != ''
"""
_PROMOTE = """
UPDATE recipient SET state = 'ready' WHERE (entry, number) IN (
  SELECT entry, number FROM recipient INDEXED BY waiting
  WHERE state = 'waiting' AND due <= ? ORDER BY due LIMIT ?)
"""
_LANE = (
    "SELECT lane FROM recipient INDEXED BY ready WHERE state = 'ready' AND lane {} ? ORDER BY lane LIMIT 1"
)
_IN_LANE = """
SELECT r.entry, r.number FROM recipient r INDEXED BY ready CROSS JOIN entry e ON e.seq = r.entry
WHERE r.state = 'ready' AND r.lane = ? AND e.state = 'queued' ORDER BY r.entry, r.number LIMIT ?
"""
_NEXT = """
SELECT coalesce((SELECT due FROM recipient INDEXED BY ready WHERE state = 'ready' LIMIT 1),
                (SELECT min(due) FROM recipient INDEXED BY waiting WHERE state = 'waiting'))
"""
_STATS = f"""
SELECT CAST(substr(r.lane, instr(r.lane, x'00') + 1) AS BLOB),
  CASE WHEN r.state IN ('ready', 'waiting') THEN 'queued' ELSE r.state END,
  {" + ".join(f"(? - e.birth >= {60 * bound})" for bound in AGES)}, count(*), min(e.birth)
FROM recipient r JOIN entry e ON e.seq = r.entry
WHERE e.state = 'queued' AND r.state IN {_OPEN} GROUP BY 1, 2, 3 ORDER BY 1, 2
"""  # noqa: S608 - own words
_AFTER = """
SELECT seq FROM entry WHERE seq > ? AND state = 'queued' AND (seq <= ? OR parent != '') ORDER BY seq LIMIT ?
"""
_KNOWN = """
SELECT 1 FROM entry WHERE id = ? UNION ALL SELECT 1 FROM finished WHERE id = ? AND time >= ? LIMIT 1
"""
_FORGET = """
DELETE FROM finished WHERE id IN (SELECT id FROM finished WHERE id < ? AND time < ? LIMIT ?)
"""
#: Entries that one read looks at, so that a filter that matches few holds up no other reader.
WINDOW = 5000


class Shard:
    """Statements over one connection. Nothing here commits."""

    def __init__(self, connection: apsw.Connection, bodies: Path) -> None:
        self.connection = connection
        self._do = connection.execute
        self._many = connection.executemany
        self._bodies = bodies
        self._cursor = b""

    def sweep(self) -> None:
        """Forget what was never committed and give all claims back: the owner has just started."""
        self._do("DELETE FROM recipient WHERE entry IN (SELECT seq FROM entry WHERE state = 'receiving')")
        self._do("DELETE FROM entry WHERE state = 'receiving'")
        point("queue.sweep")
        back = self._do(f"{_GIVE_BACK} WHERE state = 'attempting' RETURNING entry, state")
        self._count_held([seq for seq, state in back if state == "held"], 1)

    def add(
        self,
        entry: Entry,
        now: float,
        state: str = "queued",
        *,
        handed: bool = False,
        was: Snapshot | None = None,
    ) -> int:
        """Store an entry and its recipients; `handed` ones are born claimed. Gives its `seq`."""
        self._do(_ADD_ENTRY, rows.entry_row(entry, state, was))
        seq = self.connection.last_insert_rowid()
        point("queue.add")
        if state == "queued":
            self.add_recipients(seq, entry, entry.recipients, now, handed=handed, restored=was is not None)
        return seq

    def add_recipients(
        self,
        seq: int,
        entry: Entry,
        some: Sequence[EntryRecipient],
        now: float,
        *,
        handed: bool = False,
        restored: bool = False,
    ) -> None:
        """Store some recipients of an entry; held ones are held since now, or since they were elsewhere."""
        made = (
            rows.recipient_row(
                seq,
                entry,
                one,
                "attempting" if handed else rows.state_row(one, now),
                now if one.state == "held" and not restored else one.due,
            )
            for one in some
        )
        self._many(_ADD_RECIPIENT, made)

    def flip(self, seq: int) -> None:
        """Commit an entry whose recipients came in batches."""
        self._do("UPDATE entry SET state = 'queued' WHERE seq = ?", (seq,))

    def drop(self, seq: int) -> None:
        """Forget an entry."""
        self._do("DELETE FROM recipient WHERE entry = ?", (seq,))
        self._do("DELETE FROM entry WHERE seq = ?", (seq,))

    def claim(self, now: float, limit: int, busy: Mapping[bytes, int], per_lane: int) -> list[Entry]:
        """Claim ready recipients, lane by lane, from where the last claim stopped."""
        self._do(_PROMOTE, (now, PROMOTED))
        taken: list[tuple[int, int]] = []
        for lane in self._lanes():
            room = min(per_lane - busy.get(lane, 0), limit - len(taken))
            if room > 0:
                taken += self._do(_IN_LANE, (lane, room))
            self._cursor = lane
            if len(taken) >= limit:
                break
        return self._claimed(taken)

    def _lanes(self) -> Iterator[bytes]:
        """Give each lane that has ready recipients once, beginning behind the cursor."""
        start = self._cursor
        lane = self._value(_LANE.format(">"), start)
        while lane is not None:
            yield lane
            lane = self._value(_LANE.format(">"), lane)
        lane = self._value(_LANE.format(">="), b"")
        while lane is not None and lane <= start:
            yield lane
            lane = self._value(_LANE.format(">"), lane)

    def take(self, where: str, values: Sequence[object], limit: int) -> list[Entry]:
        """Claim queued and held recipients that match."""
        query = (
            f"SELECT r.entry, r.number, r.state FROM recipient r JOIN entry e ON e.seq = r.entry "  # noqa: S608 - own words
            f"WHERE e.state = 'queued' AND r.state IN ('ready', 'waiting', 'held') AND {where} LIMIT ?"
        )
        found = list(self._do(query, (*values, limit)))
        held = [(seq, number) for seq, number, state in found if state == "held"]
        self._count_held((seq for seq, _ in held), -1)
        self._many(_TAKE_HELD, held)
        return self._claimed([(seq, number) for seq, number, _ in found])

    def _claimed(self, taken: Sequence[tuple[int, int]]) -> list[Entry]:
        by_entry: dict[int, list[int]] = {}
        for seq, number in taken:
            by_entry.setdefault(seq, []).append(number)
        self._many(_STATE, (("attempting", seq, number) for seq, number in taken))
        if taken:
            point("queue.claim")
        return [self._load(seq, numbers) for seq, numbers in by_entry.items()]

    def _load(self, seq: int, numbers: Sequence[int]) -> Entry:
        *row, header, body = next(
            self._do(f"SELECT {rows.ENTRY}, header, body FROM entry WHERE seq = ?", (seq,))  # noqa: S608 - own words
        )
        message = rows.message_of(self._bodies, row[1], row[-1], header, body)
        query = f"SELECT {rows.RECIPIENT} FROM recipient WHERE entry = ? AND number = ?"  # noqa: S608 - own words
        return rows.entry_of(tuple(row), [next(self._do(query, (seq, n))) for n in numbers], message)

    def finish(self, finish: Finish, now: float) -> list[str]:
        """End one attempt. Gives the ids of the body files that are not needed any more."""
        for birth in finish.births:
            self.add(birth, now)
        point("queue.finish")
        seq, left = next(self._do("SELECT seq, open FROM entry WHERE id = ?", (finish.entry.id,)))
        ended = [one for one in finish.recipients if one.state in ENDED]
        if len(ended) == left:
            filed = self._value("SELECT file FROM entry WHERE seq = ?", seq)
            point("queue.forget")
            self.drop(seq)
            self._do("INSERT OR REPLACE INTO finished VALUES (?, ?)", (rows.id_key(finish.entry.id), now))
            return [] if filed is None else [finish.entry.id]
        delivered = sum(one.state == "delivered" for one in ended)
        self._do(
            "UPDATE entry SET open = open - ?, delivered = delivered + ? WHERE seq = ?",
            (len(ended), delivered, seq),
        )
        point("queue.settle")
        self._settle(seq, finish.recipients, now)
        if finish.bounced:
            self._do(f"DELETE FROM recipient WHERE entry = ? AND state NOT IN {_OPEN}", (seq,))  # noqa: S608 - own words
        return []

    def _settle(self, seq: int, recipients: Sequence[EntryRecipient], now: float) -> None:
        for one in recipients:
            if one.state == "delivered":
                self._do(_DELETE_RECIPIENT, (seq, one.number))
            else:
                state = rows.state_row(one, now)
                self._do(_END, (state, one.due, one.attempts, rows.more_of(one), seq, one.number))
                self._do(
                    "UPDATE recipient SET address = ? WHERE entry = ? AND number = ? AND address != ?",
                    (address := rows.encode(one.recipient.address), seq, one.number, address),
                )

    def split(self, entry: Entry, number: int, recipients: Sequence[EntryRecipient], now: float) -> None:
        """Put several recipients in the place of a claimed one."""
        seq, first = next(self._do("SELECT seq, numbers FROM entry WHERE id = ?", (entry.id,)))
        self._do(_DELETE_RECIPIENT, (seq, number))
        point("queue.split")
        many = len(recipients)
        self._do(
            "UPDATE entry SET numbers = numbers + ?, open = open + ? WHERE seq = ?", (many, many - 1, seq)
        )
        numbered = [replace(one, number=first + i) for i, one in enumerate(recipients)]
        self.add_recipients(seq, entry, numbered, now)

    def release_claims(self, entries: Sequence[Entry]) -> None:
        """Give claimed recipients back; a claim that a person made may have come before they were due."""
        for entry in entries:
            point("queue.release")
            seq = self._value("SELECT seq FROM entry WHERE id = ?", entry.id)
            numbers = [(seq, one.number) for one in entry.recipients]
            back = self._many(f"{_GIVE_BACK} WHERE entry = ? AND number = ? RETURNING state", numbers)
            self._count_held([seq for (state,) in list(back) if state == "held"], 1)

    def change(self, verb: str, where: str, values: Sequence[object], now: float) -> list[str]:
        """Retry, hold or release what matches. Gives the ids of the entries touched."""
        source = {"retry": "'ready', 'waiting'", "hold": "'ready', 'waiting'", "release": "'held'"}[verb]
        wanted = f"r.state IN ({source}) AND e.state = 'queued' AND {where}"
        found = list(
            self._do(
                f"SELECT r.entry, e.id, r.number, r.due FROM recipient r "  # noqa: S608 - own words
                f"JOIN entry e ON e.seq = r.entry WHERE {wanted}",
                values,
            )
        )
        state, due = ("held", now) if verb == "hold" else ("ready", now)
        self._many(
            "UPDATE recipient SET state = ?, due = ? WHERE entry = ? AND number = ?",
            ((state, due, seq, number) for seq, _, number, _ in found),
        )
        if verb != "retry":
            self._count_held((seq for seq, _, _, _ in found), 1 if verb == "hold" else -1)
        if verb == "release":
            self._many(_NOT_HELD, ((seq, number) for seq, _, number, _ in found))
            self._age({seq: since for seq, _, _, since in found}, now)
        return list(dict.fromkeys(id_ for _, id_, _, _ in found))

    def _count_held(self, entries: Iterable[int], change: int) -> None:
        self._many("UPDATE entry SET held = held + ? WHERE seq = ?", ((change, seq) for seq in entries))

    def readdress(
        self, where: str, values: Sequence[object], now: float, change: Callable[[Recipient], Recipient]
    ) -> list[str]:
        """Give recipients that match another address. Gives the ids of the entries touched."""
        columns = ", ".join(f"r.{name}" for name in rows.RECIPIENT.split(", "))
        found = self._do(
            f"SELECT e.id, {columns} FROM recipient r JOIN entry e ON e.seq = r.entry "  # noqa: S608 - own words
            f"WHERE r.state IN ('ready', 'waiting', 'held') AND e.state = 'queued' AND {where}",
            values,
        ).fetchall()
        for _, *row in found:
            one = rows.recipient_of(tuple(row))
            new = one.anew(change(one.recipient), now)
            to, state = rows.encode(new.recipient.address), rows.state_row(new, now)
            self._do(_READDRESS, (state, new.due, to, rows.more_of(new), *row[:2]))
        return list(dict.fromkeys(str(id_) for id_, *_ in found))

    def _age(self, held_since: Mapping[int, float], now: float) -> None:
        """Time spent held does not count into a message's age."""
        changes = ((max(0.0, now - since), seq) for seq, since in held_since.items())
        self._many("UPDATE entry SET birth = birth + ? WHERE seq = ?", changes)

    def delete(self, where: str, values: Sequence[object]) -> tuple[list[Entry], list[str]]:
        """Forget whole entries that match and have no claimed recipient, and name their body files."""
        free = "NOT EXISTS (SELECT 1 FROM recipient a WHERE a.entry = e.seq AND a.state = 'attempting')"
        found = self.entries(f"{where} AND {free}", values, -1)
        for seq, _, _ in found:
            self.drop(seq)
        return [entry for _, entry, _ in found], [entry.id for _, entry, filed in found if filed]

    def entries(
        self, where: str, values: Sequence[object], limit: int, after: str = ""
    ) -> list[tuple[int, Entry, bool]]:
        """Give (seq, entry without body, whether its body is a file) in order of id."""
        query = (
            f"SELECT {rows.ENTRY} FROM entry e WHERE e.id > ? AND e.state = 'queued' AND EXISTS "  # noqa: S608 - own words
            f"(SELECT 1 FROM recipient r WHERE r.entry = e.seq AND {where}) ORDER BY e.id LIMIT ?"
        )
        found = list(self._do(query, (after, *values, limit)))
        query = f"SELECT {rows.RECIPIENT} FROM recipient WHERE entry = ?"  # noqa: S608 - own words
        return [
            (row[0], rows.entry_of(row, list(self._do(query, (row[0],))), Message(b"")), row[-1] is not None)
            for row in found
        ]

    def window(self, where: str, values: Sequence[object], limit: int, after: str) -> tuple[list[Entry], str]:
        """Look for entries among the next WINDOW; gives them, and where to go on ("" at the end)."""
        query = "SELECT id FROM entry WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
        last: str = self._value(query, after, WINDOW - 1) or ""
        within = f"{where} AND e.id <= ?" if last else where
        found = self.entries(within, [*values, last] if last else values, limit, after)
        return [entry for _, entry, _ in found], last

    def get(self, entry_id: str) -> Entry | None:
        """Give one entry with its message."""
        found = self._value("SELECT seq FROM entry WHERE state = 'queued' AND id = ?", entry_id)
        return None if found is None else self._whole(found)

    def _whole(self, seq: int) -> Entry:
        numbers = [n for (n,) in self._do("SELECT number FROM recipient WHERE entry = ?", (seq,))]
        return self._load(seq, numbers)

    def count(self) -> int:
        """Count the entries."""
        return int(self._value("SELECT count(*) FROM entry WHERE state = 'queued'"))

    def last(self) -> int:
        """Give the `seq` of the newest entry, 0 when there is none."""
        return self._value("SELECT max(seq) FROM entry") or 0

    def after(self, seq: int, last: int, limit: int) -> list[int]:
        """Give the entries behind `seq`; of those behind `last` only what was born here."""
        return [found for (found,) in self._do(_AFTER, (seq, last, limit))]

    def snapshot(self, seq: int) -> Snapshot | None:
        """Read one entry, and what it does not tell itself, in one transaction; None when it has ended."""
        # Not `with connection`: one that only reads has no transaction to end by a COMMIT of its own.
        self._do("BEGIN")
        try:
            row = next(self._do("SELECT delivered, numbers FROM entry WHERE seq = ?", (seq,)), None)
            return None if row is None else Snapshot(self._whole(seq), *row)
        finally:
            self._do("END")

    def rest(self, entry_id: str, numbers: Collection[int]) -> Rest:
        """Tell what an entry holds beside these recipients."""
        seq, left, held, delivered = next(
            self._do("SELECT seq, open, held, delivered FROM entry WHERE id = ?", (entry_id,))
        )
        others = left - held - len(numbers)
        if others:
            return Rest(others, held, delivered)
        failed = self._do(
            f"SELECT {rows.RECIPIENT} FROM recipient WHERE entry = ? AND state NOT IN {_OPEN}",  # noqa: S608 - own words
            (seq,),
        )
        return Rest(0, held, delivered, [rows.recipient_of(row) for row in failed])

    def next_due(self) -> float | None:
        """When the earliest recipient is due."""
        due: float | None = self._value(_NEXT)
        return due

    def known(self, ids: Iterable[str], since: float) -> set[str]:
        """Give those of the ids that are here, or were finished since a time."""
        return {one for one in ids if self._value(_KNOWN, one, rows.id_key(one), since) is not None}

    def remember(self, ended: Mapping[str, float]) -> None:
        """Take messages for finished."""
        found = ((rows.id_key(id_), when) for id_, when in ended.items())
        self._many("INSERT OR IGNORE INTO finished VALUES (?, ?)", found)

    def forget_finished(self, before: float, limit: int) -> None:
        """Forget some ids of messages that ended before a time: they are among those born before it."""
        self._do(_FORGET, (rows.id_key(first_id(before)), before, limit))

    def stats(self, now: float) -> list[tuple[bytes, str, int, int, float]]:
        """Count recipients by domain, state and column of AGES; and give the birth of the oldest."""
        return list(self._do(_STATS, (now,) * len(AGES)))

    def files(self) -> set[str]:
        """Give the ids of all entries whose body is a file."""
        return {id_ for (id_,) in self._do("SELECT id FROM entry WHERE file IS NOT NULL")}

    def _value(self, query: str, *values: object) -> Any:
        row = next(self._do(query, values), None)
        return None if row is None else row[0]
