"""Drops: mail that programs wrote into the drop folder while the gateway was down.

`qmail/handover.py` writes them and describes their form. Anybody may put anything there, so nothing is
followed, and nothing is believed but the owner that the file system tells.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import stat
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from gateway.address import Address
from gateway.decision import Defer, Reject
from gateway.envelope import Recipient, Transaction
from gateway.errors import MessageTooBig
from gateway.message import IN_MEMORY, Message
from gateway.qmail import envelope, handover

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.message import Spool

#: Drops of one user that one look finds; the rest waits for the next, behind those of others.
PER_USER = 100
#: A program that writes a drop for longer than this is dead: qmail-queue has an alarm of a day.
_LEFT_OVER = 36 * 3600
_TOO_BIG = Reject("5.3.4", "the message is too big", reason="message_size")
_NO_DROP = Reject("5.5.2", "what lies in the drop folder is no message", reason="drop")
_NO_ROOM = Defer("4.3.0", "the message cannot be stored now, try again later", reason="disk")


class _NotADropError(Exception):
    """A file that no program of ours has finished."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A file in the drop folder that is said to be whole."""

    name: bytes
    owner: int
    #: The id of its message: always the same, so that it is not taken in twice.
    id: str


def waiting(folder: bytes) -> list[Drop]:
    """Find the drops to take in, at most PER_USER of each owner, one owner after the other."""
    found: dict[int, list[Drop]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if not entry.name.startswith(handover.WRITTEN):
                    _clean(folder, entry, status)
                    continue
                mine = found.setdefault(status.st_uid, [])
                if len(mine) == PER_USER:  # any of them gives way, so that those deferred stop no others
                    mine.pop(random.randrange(PER_USER))  # noqa: S311 - only fairness hangs on it
                mine.append(Drop(entry.name, status.st_uid, _id(entry.name, status)))
    return [drop for n in range(PER_USER) for mine in found.values() for drop in mine[n : n + 1]]


def _clean(folder: bytes, entry: os.DirEntry[bytes], status: os.stat_result) -> None:
    """Remove what a program that was killed has left unfinished; nobody was told that it was taken."""
    old = time.time() > status.st_mtime + _LEFT_OVER
    if old and entry.name.startswith(handover.WRITING) and not stat.S_ISDIR(status.st_mode):
        os.unlink(os.path.join(folder, entry.name))  # noqa: PTH108, PTH118 - a path of bytes


def _id(name: bytes, status: os.stat_result) -> str:
    """Make the id that this drop always gets, so that it is not taken in twice; a UUIDv7, as all ids are."""
    facts = b"%b %d %d %d" % (name, status.st_uid, status.st_ino, status.st_mtime_ns)
    digits = int.from_bytes(hashlib.sha256(facts).digest()[:10], "big")
    stamp = status.st_mtime_ns // 1_000_000 & (1 << 48) - 1
    return str(uuid.UUID(int=stamp << 80 | 7 << 76 | (digits >> 68) << 64 | 2 << 62 | digits & (1 << 62) - 1))


def read(path: bytes, transaction: Transaction, spool: Spool) -> Reject | Defer | None:
    """Read a drop into the transaction and the spool, or say why not."""
    try:
        with _opened(path) as file:
            start = _addresses(file, transaction)
            while start and (block := file.read(min(start, handover.BLOCK))):
                start -= len(block)
                refusal = kept(spool.write, block)
                if refusal:
                    return refusal
    except _NotADropError:
        return _NO_DROP
    except OSError:
        return _NO_ROOM
    return None


def beginning(path: bytes, transaction: Transaction) -> Message:
    """Read as much of a drop as a bounce shows."""
    with _opened(path) as file:
        return Message.parse(file.read(min(_addresses(file, transaction), IN_MEMORY)))


def _opened(path: bytes) -> BinaryIO:
    """Open a regular file that has one name only: no link leads us to read what its maker may not read."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.ENXIO, errno.EISDIR):
            raise _NotADropError from error
        raise
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return file
    file.close()
    raise _NotADropError


def _addresses(file: BinaryIO, transaction: Transaction) -> int:
    """Read the envelope at the end of a drop; gives where it starts, which is where the message ends."""
    end = os.fstat(file.fileno()).st_size - handover.LENGTH.size - len(handover.DROP_END)
    if end < 0:
        raise _NotADropError
    tail = os.pread(file.fileno(), handover.LENGTH.size + len(handover.DROP_END), end)
    (length,) = handover.LENGTH.unpack(tail[: handover.LENGTH.size])
    start: int = end - length
    if not tail.endswith(handover.DROP_END) or start < 0 or length > envelope.MAX_BYTES:
        raise _NotADropError
    if addressed(transaction, os.pread(file.fileno(), length, start)):
        raise _NotADropError
    return start


def kept(write: Callable[[bytes], None], block: bytes) -> Reject | Defer | None:
    """Write a block, or say why not."""
    try:
        write(block)
    except MessageTooBig:
        return _TOO_BIG
    except OSError:
        return _NO_ROOM
    return None


def addressed(transaction: Transaction, raw: bytes) -> Reject | None:
    """Put sender and recipients of an envelope into the transaction, or say why not."""
    try:
        sender, recipients = envelope.parse(raw)
    except envelope.EnvelopeError as error:
        return Reject("5.5.2", f"the envelope is not well-formed ({error.code})", reason="envelope")
    addresses = map(Address.decode, recipients)
    transaction.sender = Address.decode(sender)
    transaction.recipients = [Recipient(one, one) for one in addresses]
    return None
