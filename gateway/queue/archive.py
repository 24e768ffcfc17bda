"""The archive of a queue: a tar that any tool opens, whole and unharmed, or an error that names the entry.

In this order: `manifest.json`; for each message `ID.eml` (its bytes as they are kept, with LF) and `ID.json`
(envelope and state); at the end `SHA256SUMS`, as sha256sum writes it, over all that stand before it.
Messages come in no order that means anything. Nothing is whole in memory but one message's JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from typing import IO, TYPE_CHECKING

from gateway.errors import ArchiveError, MessageError
from gateway.message import BLOCK, FileBody, Message, Spool
from gateway.queue.archive_json import is_id, read_snapshot, snapshot_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from gateway.queue.store import Snapshot

#: Raised when an older version could not read what a newer one writes.
FORMAT = 1
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
#: Message texts are for the gateway's user alone, also when tar unpacks them.
_MODE = 0o600
_UNIT = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of itself."""

    #: When it was begun, seconds since the epoch.
    created: float
    host: str
    #: Of the program that wrote it.
    version: str
    #: The last sequence of each journal stream before the first message was read.
    streams: Mapping[str, int] = field(default_factory=dict)
    format: int = FORMAT


class Writer:
    """Writes one archive into an open file; it is whole after `end`."""

    def __init__(self, file: IO[bytes], manifest: Manifest) -> None:
        self._file = file
        self._sums = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._when = int(manifest.created)
        self.messages = 0
        self._put(MANIFEST, json.dumps(asdict(manifest), indent=1).encode())

    def add(self, snapshot: Snapshot) -> bool:
        """Write one message; False when its body is gone: then it has ended."""
        id_, message = snapshot.entry.id, snapshot.entry.message
        try:
            body, size = _opened(message)
        except FileNotFoundError:
            return False
        with body:
            blocks = iter(lambda: body.read(BLOCK), b"")
            self._write(f"{id_}.eml", len(message.header) + size, chain((message.header,), blocks))
        self._put(f"{id_}.json", snapshot_json(snapshot))
        self.messages += 1
        return True

    def end(self) -> None:
        """Write the checksums, and the end of the tar."""
        size = self._sums.tell()
        self._sums.seek(0)
        with self._sums:
            self._write(SUMS, size, iter(lambda: self._sums.read(BLOCK), b""))
        self._file.write(bytes(2 * _UNIT))

    def _put(self, name: str, data: bytes) -> None:
        self._write(name, len(data), (data,))

    def _write(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = size, self._when, _MODE
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
        digest, written = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            written += self._file.write(piece)
        if written != size:
            raise ArchiveError(f"{name} changed while it was read: it has {written} bytes instead of {size}")
        self._file.write(bytes(-size % _UNIT))
        if name != SUMS:
            self._sums.write(f"{digest.hexdigest()}  {name}\n".encode())


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

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> int:
        """Read all of it, and give how many messages it holds. Raises ArchiveError, which names the entry."""
        messages = 0
        with tempfile.TemporaryFile() as sums:
            for member in self._members():
                if member.name == SUMS:
                    self._compare(member, sums)
                    break
                digest = hashlib.sha256()
                for block in self._blocks(member):
                    digest.update(block)
                if member.name.endswith(".json") and member.name != MANIFEST:
                    self._snapshot(member, Message(b""))
                    messages += 1
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

    def _members(self) -> Iterator[_Member]:
        """Give each member in its turn; what stands where it must not is an error."""
        offset, last = 0, None
        while header := self._header(offset, last):
            try:
                found = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            except (tarfile.HeaderError, UnicodeError) as error:
                raise self._damaged(last, str(error)) from None
            member = _Member(found.name, offset + _UNIT, found.size)
            if not found.isreg() or not _may_follow(member, last):
                raise self._damaged(last, f"{found.name!r} may not stand there")
            offset = member.offset + member.size + -member.size % _UNIT
            if offset > self.size:
                raise ArchiveError(f"{self.name} is cut off in {member.name}")
            self._only_zeros(member.offset + member.size, offset, member)
            yield member
            last = member
        if last is None or last.name != SUMS:
            raise self._damaged(last, f"{SUMS} is missing")
        self._only_zeros(offset, self.size, last)

    def _header(self, offset: int, last: _Member | None) -> bytes:
        """Give the header at a place; nothing at the end."""
        self._file.seek(offset)
        header = self._file.read(_UNIT)
        if len(header) < _UNIT:
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

    def _blocks(self, member: _Member) -> Iterator[bytes]:
        place, end = member.offset, member.offset + member.size
        while place < end:
            self._file.seek(place)
            block = self._file.read(min(BLOCK, end - place))
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
            for block in self._blocks(text):
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
    """Tell whether this is the order: manifest, pairs of text and JSON, checksums."""
    if last is None:
        return True
    if last.name.endswith(".eml"):
        return member.name == f"{last.id}.json"
    if last.name == SUMS:
        return False
    return member.name == SUMS or (member.name.endswith(".eml") and is_id(member.id))


def _opened(message: Message) -> tuple[IO[bytes], int]:
    """Open the body of a message; a file that is open stays readable when the store drops it."""
    if not isinstance(message.body, FileBody):
        return io.BytesIO(message.body), len(message.body)
    file = message.body.path.open("rb")
    return file, os.fstat(file.fileno()).st_size


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest
