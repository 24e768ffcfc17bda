"""Reads the archive of a queue: all of it is whole and unharmed, or an error names the entry."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import IO, TYPE_CHECKING

from gateway.errors import ArchiveError, MessageError
from gateway.message import BLOCK, HEADER_LIMIT, Message, Spool
from gateway.queue.archive.form import finite, is_id, read_snapshot
from gateway.queue.archive.writer import FINISHED, FORMAT, MANIFEST, MODE, SUMS, UNIT, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from gateway.queue.store import Snapshot

#: The first block that a Spool is given holds the whole header, which trace fields may have made longer than
#: a sender's may be.
LONGEST_HEADER = 2 * HEADER_LIMIT


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    #: Where its content begins.
    offset: int
    size: int

    @property
    def id(self) -> str:
        """The message that it belongs to."""
        return self.name.rpartition(".")[0]


class Archive:
    """An archive to be read: an open file that can be sought. Errors call it `name`."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Read the manifest. Raises ArchiveError."""
        self._file = file
        self.name = name
        self.size = file.seek(0, io.SEEK_END)
        first = next(self._members())
        if first.name != MANIFEST:
            raise ArchiveError(f"{name} is no archive of a queue: it does not begin with {MANIFEST}")
        self.manifest = self._manifest(self._content(first))

    @classmethod
    @contextmanager
    def at(cls, path: Path, name: str = "") -> Iterator[Archive]:
        """Open an archive on disk. Raises ArchiveError."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise ArchiveError(f"{path}: {error.strerror}") from error
        with file:
            yield cls(file, name or str(path))

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> int:
        """Read all of it, and give how many messages it holds. Raises ArchiveError, which names the entry."""
        messages = 0
        with tempfile.TemporaryFile() as sums:
            for member in self._members():
                if member.name == SUMS:
                    self._compare(member, sums)
                    continue
                digest = hashlib.sha256()
                for block in self._blocks(member):
                    digest.update(block)
                if member.name.endswith(".json") and member.name != MANIFEST:
                    self._snapshot(member, Message(b""))
                    messages += 1
                if member.name == FINISHED:
                    deque(self._ended(member), 0)
                sums.write(f"{digest.hexdigest()}  {member.name}\n".encode())
                progress(member.offset)
        progress(self.size)
        return messages

    def ids(self) -> Iterator[str]:
        """Give the ids of the messages."""
        return (member.id for member in self._members() if member.name.endswith(".eml"))

    def snapshots(self, folder: Path, progress: Callable[[int], None] = lambda _: None) -> Iterator[Snapshot]:
        """Give the messages of an archive that was verified; large bodies become files in `folder`."""
        text: _Member | None = None
        for member in self._members():
            if text:
                yield self._snapshot(member, self._message(text, folder))
            text = member if member.name.endswith(".eml") else None
            progress(member.offset)

    def finished(self) -> Iterator[tuple[str, float]]:
        """Give the ids of messages that have ended, and when they did. Raises ArchiveError."""
        for member in self._members():
            if member.name == FINISHED:
                yield from self._ended(member)

    def _ended(self, member: _Member) -> Iterator[tuple[str, float]]:
        for line in _lines(self._blocks(member)):
            id_, _, when = line.decode("ascii", "replace").strip().partition(" ")
            if not is_id(id_):
                raise ArchiveError(f"{self.name}: {member.name} is damaged: {id_!r} is no id")
            try:
                yield id_, finite(when)
            except ValueError as error:
                raise ArchiveError(f"{self.name}: {member.name} is damaged: {error}") from None

    def unpack(self, folder: Path) -> None:
        """Write each message as two files, for the eyes of their owner only."""
        for member in self._members():
            if is_id(member.id):
                path = folder / member.name
                path.unlink(missing_ok=True)
                number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
                with os.fdopen(number, "wb") as file:
                    file.writelines(self._blocks(member))

    def _members(self) -> Iterator[_Member]:
        """Give each member in its turn; what stands where it must not is an error."""
        offset, last = 0, None
        while header := self._header(offset, last):
            try:
                found = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            except (tarfile.HeaderError, UnicodeError) as error:
                raise self._damaged(last, str(error)) from None
            member = _Member(found.name, offset + UNIT, found.size)
            if found.tobuf(tarfile.USTAR_FORMAT) != header:
                raise self._damaged(last, f"the header of {found.name!r} is not as it was written")
            if not found.isreg() or not _may_follow(member, last):
                raise self._damaged(last, f"{found.name!r} may not stand there")
            offset = member.offset + member.size + -member.size % UNIT
            if offset > self.size:
                raise ArchiveError(f"{self.name} is cut off in {member.name}")
            self._only_zeros(member.offset + member.size, offset, member)
            yield member
            last = member
        if last is None or last.name != SUMS:
            raise self._damaged(last, f"{SUMS} is missing")
        if self.size < offset + 2 * UNIT:
            raise ArchiveError(f"{self.name} is cut off behind {last.name}")
        self._only_zeros(offset, self.size, last)

    def _header(self, offset: int, last: _Member | None) -> bytes:
        """Give the header at a place; nothing at the end."""
        self._file.seek(offset)
        header = self._file.read(UNIT)
        if len(header) < UNIT:
            raise ArchiveError(f"{self.name} is cut off behind {last.name if last else 'its beginning'}")
        return header if any(header) else b""

    def _damaged(self, last: _Member | None, why: str) -> ArchiveError:
        return ArchiveError(f"{self.name} is damaged behind {last.name if last else 'its beginning'}: {why}")

    def _only_zeros(self, start: int, end: int, last: _Member) -> None:
        self._file.seek(start)
        while start < end:
            block = self._file.read(min(BLOCK, end - start))
            if any(block):
                raise self._damaged(last, "it holds what belongs to no entry")
            start += len(block)

    def _blocks(self, member: _Member, block_size: int = BLOCK) -> Iterator[bytes]:
        place, end = member.offset, member.offset + member.size
        while place < end:
            self._file.seek(place)
            block = self._file.read(min(block_size, end - place))
            if not block:
                raise ArchiveError(f"{self.name} is cut off in {member.name}")
            place += len(block)
            yield block

    def _content(self, member: _Member) -> bytes:
        return b"".join(self._blocks(member))

    def _manifest(self, data: bytes) -> Manifest:
        try:
            found = json.loads(data)
            newer = int(found["format"]) > FORMAT
            manifest = None if newer else Manifest(**found)
        except (ValueError, KeyError, TypeError) as error:
            raise ArchiveError(f"{self.name}: {MANIFEST} is damaged: {error}") from None
        if manifest is None:
            raise ArchiveError(
                f"{self.name} was written by a newer version ({found.get('version')}): "
                f"its format is {found['format']}, and this one knows {FORMAT}"
            )
        return manifest

    def _snapshot(self, member: _Member, message: Message) -> Snapshot:
        try:
            found = read_snapshot(self._content(member), message)
        except ValueError as error:
            raise ArchiveError(f"{self.name}: {member.name} is damaged: {error}") from None
        if found.entry.id != member.id:
            raise ArchiveError(f"{self.name}: {member.name} is of another message, {found.entry.id}")
        return found

    def _message(self, text: _Member, folder: Path) -> Message:
        spool = Spool(folder)
        try:
            for block in self._blocks(text, LONGEST_HEADER):
                spool.write(block)
            return spool.finish()
        except MessageError as error:
            raise ArchiveError(f"{self.name}: {text.name}: {error}") from error
        finally:
            spool.discard()

    def _compare(self, member: _Member, sums: IO[bytes]) -> None:
        """Hold the checksums against those of what was read."""
        sums.seek(0)
        for said, found in zip_longest(_lines(self._blocks(member)), sums):
            if said != found:
                name = (found or said or b"").decode("ascii", "replace").rpartition("  ")[2].strip()
                raise ArchiveError(f"{self.name}: {name} is damaged: its checksum is another")


def _may_follow(member: _Member, last: _Member | None) -> bool:
    """Tell whether this is the order: manifest, pairs of text and JSON, what has ended, checksums."""
    if last is None:
        return True
    if last.name.endswith(".eml"):
        return member.name == f"{last.id}.json"
    if last.name in (FINISHED, SUMS):
        return last.name == FINISHED and member.name == SUMS
    return member.name in (FINISHED, SUMS) or (member.name.endswith(".eml") and is_id(member.id))


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest
