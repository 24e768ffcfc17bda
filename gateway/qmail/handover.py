"""Hands a message to the gateway: through its submit socket, or into the drop folder while it is down.

On the socket: the message in blocks, each behind its length (4 bytes, big-endian), an empty block, then the
envelope in the same way. The answer is a letter and a text: `K` taken (and its id), `D` refused for good,
`Z` refused for now. A drop is a file: the message, the envelope, the envelope's length (4 bytes), a mark.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 64 * 1024
LENGTH = struct.Struct(">I")
#: The last bytes of a drop: what lacks them was never finished.
DROP_END = b"\nmailward drop\n"
SOCKET = b"submit"
DROPS = b"drop"
#: What begins the name of a drop while it is written, and when it is whole.
WRITING = b"tmp."
WRITTEN = b"new."

#: Exit codes of qmail-queue (qmail spec 4.3).
REFUSED = 31
TIMEOUT = 52
WRITE_ERROR = 53
HOME_ERROR = 61
FOLDER_ERROR = 62
DEFERRED = 71
CONNECTION_LOST = 74

_CODES = {b"K": 0, b"D": REFUSED, b"Z": DEFERRED}
_LONGEST_ANSWER = 1024


class Spool:
    """A message, read to its end before the gateway hears of it; a large one is a file without name."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._file = -1

    def write(self, data: bytes) -> None:
        """Add bytes. Raises OSError when there is no room."""
        self._size += len(data)
        if self._file < 0 and self._size <= 16 * BLOCK:
            self._pieces.append(data)
            return
        if self._file < 0:
            folder = os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - the file has no name
            self._file = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                write_all(self._file, piece)
        write_all(self._file, data)

    def blocks(self) -> Iterator[bytes]:
        """Give the message from its beginning."""
        yield from self._pieces
        at = 0
        while self._file >= 0 and (block := os.pread(self._file, BLOCK, at)):
            at += len(block)
            yield block


def hand_over(state: bytes, spool: Spool, envelope: bytes) -> tuple[int, bytes]:
    """Give the exit code of qmail-queue for it, and what the gateway said: an id, or a reason."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with link:
        try:
            link.connect(os.path.join(state, SOCKET))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return _drop(state, spool, envelope)
        except OSError as error:
            return HOME_ERROR, _reason(error)
        try:
            _send(link, spool, envelope)
        except OSError:
            # It has not seen the end, so it has taken nothing: it is stopping.
            return _drop(state, spool, envelope)
        try:
            link.sendall(LENGTH.pack(0))
            answer = _answer(link)
        except OSError as error:
            return CONNECTION_LOST, _reason(error)
    code = _CODES.get(answer[:1], CONNECTION_LOST)
    return WRITE_ERROR if answer.startswith(b"Z4.3.1") else code, answer[1:]


def _send(link: socket.socket, spool: Spool, envelope: bytes) -> None:
    """Send all but the end."""
    for block in spool.blocks():
        link.sendall(LENGTH.pack(len(block)) + block)
    link.sendall(LENGTH.pack(0))
    for at in range(0, len(envelope), BLOCK):
        block = envelope[at : at + BLOCK]
        link.sendall(LENGTH.pack(len(block)) + block)


def _answer(link: socket.socket) -> bytes:
    answer = b""
    while len(answer) < _LONGEST_ANSWER and (data := link.recv(_LONGEST_ANSWER)):
        answer += data
    return answer


def _drop(state: bytes, spool: Spool, envelope: bytes) -> tuple[int, bytes]:
    """Write a drop: when this says 0, it is on stable storage."""
    folder = os.path.join(state, DROPS)
    name = b"%d.%s" % (os.getpid(), os.urandom(12).hex().encode())
    writing = os.path.join(folder, WRITING + name)
    try:
        file = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        return FOLDER_ERROR, b"no gateway runs, and " + _reason(error)
    try:
        os.fchmod(file, 0o640)  # whatever the umask: the gateway reads it by its group
        for block in spool.blocks():
            write_all(file, block)
        write_all(file, envelope + LENGTH.pack(len(envelope)) + DROP_END)
        os.fsync(file)
        os.rename(writing, os.path.join(folder, WRITTEN + name))
        _sync_folder(folder)
    except OSError as error:
        if os.path.exists(writing):
            os.unlink(writing)
        return WRITE_ERROR, _reason(error)
    finally:
        os.close(file)
    return 0, name


def _sync_folder(folder: bytes) -> None:
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        os.sync()  # a folder that we may write but not read cannot be opened for an fsync
        return
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_all(file: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _reason(error: OSError) -> bytes:
    return os.fsencode(error.strerror or "the connection is lost")
