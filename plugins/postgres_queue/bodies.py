"""Bodies too big for a row: in pieces in the database, and as files here while somebody reads them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from gateway import FileBody, point

from . import statements

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from gateway import Entry, EntryRecipient

    from .links import Connection, Link

#: Bytes of a piece, and how many recipients or pieces one transaction stores.
PIECE = 256 * 1024
RECIPIENTS, PIECES = 5000, 8
#: Seconds that a file stays which belongs to no claim.
_LEFT = 60.0
_PIECE = "INSERT INTO body VALUES (%s, %s, %b)"
_MINE = "SELECT 1 FROM entry WHERE id = %s AND state = 'receiving' AND owner = %s FOR KEY SHARE"


class Swept(Exception):
    """The entry is not there any more: another node has taken this one for dead."""


class Bodies:
    """The files in `folder`, each named by its entry; the database has them all."""

    def __init__(self, folder: Path, link: Link) -> None:
        self._folder = folder
        self._link = link

    def path(self, entry_id: str) -> Path:
        """Say where the body of an entry is while it is here."""
        return self._folder / entry_id

    def here(self, entry_id: str, size: int) -> FileBody | None:
        """Give a body that is here."""
        path = self.path(entry_id)
        if not path.exists():
            return None
        path.touch()
        return FileBody(path, size)

    async def receive(self, entry: Entry, now: float, me: int) -> None:
        """Store an entry of a large body or many recipients; nobody sees it until it is flipped."""
        await self._link.run(lambda one: statements.add(one, [entry], now, "receiving", me))
        point("queue.receiving")
        for start in range(0, len(entry.recipients), RECIPIENTS):
            await self._some(entry, entry.recipients[start : start + RECIPIENTS], now, me)
            point("queue.part")
        body = entry.message.body
        if isinstance(body, FileBody):
            with await asyncio.to_thread(body.path.open, "rb") as file:
                part = 0
                while pieces := await asyncio.to_thread(lambda: [file.read(PIECE) for _ in range(PIECES)]):
                    pieces = [piece for piece in pieces if piece]
                    if not pieces:
                        break
                    await self._pieces(entry.id, part, pieces, me)
                    point("body.part")
                    part += len(pieces)

    async def _some(self, entry: Entry, some: Sequence[EntryRecipient], now: float, me: int) -> None:
        async def store(connection: Connection) -> None:
            await _still_ours(connection, entry.id, me)
            await statements.add_recipients(connection, [(entry, one) for one in some], now)

        await self._link.run(store)

    async def _pieces(self, entry_id: str, first: int, pieces: Sequence[bytes], me: int) -> None:
        async def store(connection: Connection) -> None:
            await _still_ours(connection, entry_id, me)
            for number, piece in enumerate(pieces, first):
                await connection.execute(_PIECE, [entry_id, number, piece])

        await self._link.run(store)

    async def forget(self, entry_id: str) -> None:
        """Drop what will never be flipped; what cannot be dropped now goes with our epoch."""
        with contextlib.suppress(Exception):
            await self._link.run(lambda one: statements.forget(one, [entry_id]))

    async def fetch(self, entry_id: str, size: int) -> FileBody:
        """Bring a body here. Raises Swept when the entry has ended meanwhile."""
        if found := self.here(entry_id, size):
            return found
        new = self.path(f"{entry_id}.new")
        part = written = 0
        with await asyncio.to_thread(new.open, "wb") as file:
            while written < size:
                piece = await self._piece(entry_id, part)
                await asyncio.to_thread(file.write, piece)
                part, written = part + 1, written + len(piece)
        point("body.fetched")
        new.rename(self.path(entry_id))
        return FileBody(self.path(entry_id), size)

    async def _piece(self, entry_id: str, part: int) -> bytes:
        async def read(connection: Connection) -> bytes:
            query = "SELECT data FROM body WHERE entry = %s AND part = %s"
            row = await (await connection.execute(query, [entry_id, part], binary=True)).fetchone()
            if row is None:
                raise Swept
            return bytes(row[0])

        return await self._link.run(read)

    def keep(self, entry: Entry, spool: Path) -> None:
        """Take over the file of an entry that is stored: it may be the next that is read here."""
        body = entry.message.body
        if not isinstance(body, FileBody):
            return
        point("body.taken")
        if body.path.parent == spool:
            body.path.rename(self.path(entry.id))
        else:
            # A forward shares its body with the original, and either may go first.
            self.path(entry.id).hardlink_to(body.path)
        entry.message.body = FileBody(self.path(entry.id), body.size)

    def drop(self, entry_id: str) -> None:
        """Remove a file; the database may still have the body."""
        path = self.path(entry_id)
        if path.exists():
            point("body.forget")
            path.unlink()

    def sweep(self, wanted: Collection[str]) -> None:
        """Remove what nobody has claimed here, and nobody has just asked for."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stem not in wanted and time.time() - path.stat().st_mtime > _LEFT:
                    path.unlink()


async def _still_ours(connection: Connection, entry_id: str, me: int) -> None:
    if await (await connection.execute(_MINE, [entry_id, me])).fetchone() is None:
        raise Swept
