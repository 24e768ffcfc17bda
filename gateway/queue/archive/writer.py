"""The archive of a queue: a tar that any tool opens, and how it is written.

In this order: `manifest.json`; for each message `ID.eml` (its bytes as they are kept, with LF) and `ID.json`
(envelope and state); in a salvaged one `finished.txt`, the ids of what has ended; at the end `SHA256SUMS`, as
sha256sum writes it, over all that stand before it.
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
from itertools import chain
from typing import IO, TYPE_CHECKING

from gateway.errors import ArchiveError
from gateway.message import BLOCK, FileBody
from gateway.queue.archive.form import snapshot_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.message import Message
    from gateway.queue.store import Snapshot

#: Raised when an older version could not read what a newer one writes.
FORMAT = 1
MANIFEST, FINISHED, SUMS = "manifest.json", "finished.txt", "SHA256SUMS"
#: Message texts are for the gateway's user alone, also when tar unpacks them.
MODE = 0o600
#: Whatever stands in a tar begins at a multiple of this.
UNIT = tarfile.BLOCKSIZE


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

    def remember(self, ended: Iterable[tuple[str, float]]) -> None:
        """Write the ids of messages that have ended, if any; comes behind every `add`."""
        with tempfile.TemporaryFile() as lines:
            lines.writelines(f"{id_} {when!r}\n".encode() for id_, when in ended)
            size = lines.tell()
            lines.seek(0)
            if size:
                self._write(FINISHED, size, iter(lambda: lines.read(BLOCK), b""))

    def end(self) -> None:
        """Write the checksums, and the end of the tar."""
        size = self._sums.tell()
        self._sums.seek(0)
        with self._sums:
            self._write(SUMS, size, iter(lambda: self._sums.read(BLOCK), b""))
        self._file.write(bytes(2 * UNIT))

    def _put(self, name: str, data: bytes) -> None:
        self._write(name, len(data), (data,))

    def _write(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = size, self._when, MODE
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
        digest, written = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            written += self._file.write(piece)
        if written != size:
            raise ArchiveError(f"{name} changed while it was read: it has {written} bytes instead of {size}")
        self._file.write(bytes(-size % UNIT))
        if name != SUMS:
            self._sums.write(f"{digest.hexdigest()}  {name}\n".encode())


def _opened(message: Message) -> tuple[IO[bytes], int]:
    """Open the body of a message; a file that is open stays readable when the store drops it."""
    if not isinstance(message.body, FileBody):
        return io.BytesIO(message.body), len(message.body)
    file = message.body.path.open("rb")
    return file, os.fstat(file.fileno()).st_size
