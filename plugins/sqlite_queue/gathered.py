"""The rows that were read from a damaged shard, and what they tell of those that were not.

They lie in a private file of SQLite's temporary folder, so that memory stays flat. A row counts by its form
alone.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

import apsw

from gateway import Address
from gateway.queue import Loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .pages import Row
    from .records import Values

#: Recipients of one loss that are named.
NAMED = 100
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID_BYTES = 16
_NONE, _NUMBER = type(None), (int, float)
#: Types of the columns, as they are on disk.
_TEXT = (bytes, (bytes, _NONE))
_ENTRY = (_NONE, str, str, int, int, int, int, bytes, _NUMBER, str, str, int, str, (int, _NONE), *_TEXT)
#: Of an entry that is cut off: so much says which it is.
_NAME = _ENTRY[:8]
_RECIPIENT = (int, int, str, _NUMBER, int, bytes, bytes, bytes, str)
_FINISHED = (bytes, _NUMBER)
#: Of the index over ids.
_LISTED = (str, int)
_STATES = ("ready", "waiting", "attempting", "held", "failed", "expired")
_OPEN = "r.state IN ('ready', 'waiting', 'attempting', 'held')"
_MORE = """
CREATE TABLE listed (seq INTEGER PRIMARY KEY, id TEXT NOT NULL);
CREATE TABLE cut (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, sender BLOB NOT NULL);
CREATE TABLE loss (id TEXT, sender BLOB, missing TEXT, recipients TEXT, saved INTEGER);
"""
_ENDED = "unhex(replace(id, '-', '')) IN (SELECT id FROM finished)"
#: What has ended, or was never committed, and is still met on a page that is older than the others.
_DROP = f"""
DELETE FROM recipient WHERE entry IN (SELECT seq FROM listed WHERE {_ENDED});
DELETE FROM recipient WHERE entry IN (SELECT seq FROM entry WHERE {_ENDED} OR state = 'receiving');
DELETE FROM listed WHERE {_ENDED} OR id IN (SELECT id FROM entry WHERE state = 'receiving');
DELETE FROM cut WHERE {_ENDED};
DELETE FROM entry WHERE {_ENDED} OR state = 'receiving'
"""  # noqa: S608 - own words
#: Messages without a text, by whatever still names them.
_TEXTLESS = """
SELECT seq, id, sender FROM cut c WHERE NOT EXISTS (SELECT 1 FROM entry WHERE id = c.id)
UNION ALL
SELECT seq, id, coalesce((SELECT lane FROM recipient WHERE entry = l.seq LIMIT 1), x'') FROM listed l
WHERE NOT EXISTS (SELECT 1 FROM entry WHERE id = l.id) AND NOT EXISTS (SELECT 1 FROM cut WHERE id = l.id)
UNION ALL
SELECT entry, '', min(lane) FROM recipient r WHERE NOT EXISTS (SELECT 1 FROM entry WHERE seq = r.entry)
AND NOT EXISTS (SELECT 1 FROM cut WHERE seq = r.entry)
AND NOT EXISTS (SELECT 1 FROM listed WHERE seq = r.entry) GROUP BY entry
"""
_SHORT = f"""
SELECT e.seq, e.id, e.sender, e.open, e.open - count(r.entry) FROM entry e
LEFT JOIN recipient r ON r.entry = e.seq AND {_OPEN} GROUP BY e.seq HAVING count(r.entry) < e.open
"""  # noqa: S608 - own words


class Gathered:
    """What was found; `connection` has the tables of a shard, and reads as one."""

    def __init__(self, schema: str) -> None:
        self.connection = apsw.Connection("")
        self._do = self.connection.execute
        self.connection.pragma("journal_mode", "off")
        self._do(schema)
        #: Made by the same words in the same order, a table begins at the same page in every shard.
        self.roots: dict[str, int] = dict(self._do("SELECT name, rootpage FROM sqlite_schema"))
        self._do(_MORE)

    def keep(self, row: Row) -> bool:
        """Keep a row; False when it has not the form of one."""
        found = row.values
        if not row.whole:
            return self._keep_name(row)
        if _fits(found, _ENTRY) and _ID.fullmatch(found[1]):
            self._put("entry", (row.rowid, *found[1:]))
        elif _fits(found, _RECIPIENT) and found[2] in _STATES:
            self._put("recipient", found)
        elif _fits(found, _LISTED) and _ID.fullmatch(found[0]):
            self._put("listed", (found[1], found[0]))
        elif _fits(found, _FINISHED) and len(found[0]) == _ID_BYTES:
            self._put("finished", found)
        else:
            return False
        return True

    def _keep_name(self, row: Row) -> bool:
        """Keep what a row that is cut off says of its message."""
        named = row.values[: len(_NAME)]
        if not _fits(named, _NAME) or not _ID.fullmatch(named[1]):
            return False
        if named[2] == "queued":
            self._put("cut", (row.rowid, named[1], named[7]))
        return True

    def _put(self, table: str, values: Values) -> None:
        self._do(f"INSERT OR IGNORE INTO {table} VALUES (?{', ?' * (len(values) - 1)})", values)  # noqa: S608 - own words

    def settle(self) -> None:
        """Drop what has ended, and note what is lost."""
        self._do(_DROP)
        for seq, id_, sender in self._do(_TEXTLESS):
            # A lane begins with the sender.
            self._lose(seq, id_, sender.partition(b"\0")[0], "its text")
        for seq, id_, sender, wanted, missing in self._do(_SHORT):
            if wanted == missing:
                self._lose(seq, id_, sender, "its recipients")
            else:
                self._lose(seq, id_, sender, f"{missing} of its {wanted} recipients", saved=True)

    def lose(self, id_: str, missing: str) -> None:
        """Note the loss of a message whose rows are whole."""
        seq, sender = self._do("SELECT seq, sender FROM entry WHERE id = ?", (id_,)).get
        self._lose(seq, id_, sender, missing)

    def _lose(self, seq: int, id_: str, sender: bytes, missing: str, *, saved: bool = False) -> None:
        query = f"SELECT original FROM recipient r WHERE entry = ? AND {_OPEN} LIMIT {NAMED}"  # noqa: S608 - own words
        named = [] if saved else [Address.decode(one) for (one,) in self._do(query, (seq,))]
        self._do("INSERT INTO loss VALUES (?, ?, ?, ?, ?)", (id_, sender, missing, json.dumps(named), saved))

    def losses(self) -> Iterator[Loss]:
        """Give the losses that were noted."""
        for id_, sender, missing, named, saved in self._do("SELECT * FROM loss"):
            recipients = [Address(one) for one in json.loads(named)]
            yield Loss(id_, Address.decode(sender), missing, recipients, bool(saved))

    def finished(self) -> Iterator[tuple[str, float]]:
        """Give the ids of messages that have ended, and when they did."""
        for key, when in self._do("SELECT id, time FROM finished"):
            yield str(UUID(bytes=key)), when


def _fits(values: Values, form: tuple[Any, ...]) -> bool:
    """Tell whether these columns have these types."""
    return len(values) == len(form) and all(map(isinstance, values, form))
