"""What lies beside the SQLite file: its folder, its lock, and the bodies too big for a row."""

from __future__ import annotations

import fcntl
import os
import shlex
from itertools import count
from typing import TYPE_CHECKING, TextIO

import apsw

from gateway import FileBody, point
from gateway.queue import QueueDamaged, QueueError, QueueLocked

from .log import Log, log_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

VERSION = 2
#: A file up to this size is read whole before it is used; of a larger one that is done beside the work, since
#: a gateway with a million messages must be back in seconds. What SQLite meets on its way is found at once.
CHECKED_FIRST = 64 * 1024 * 1024
BLOCK = 64 * 1024


def make_folders(folder: Path) -> None:
    """Make the store's folders, to be read by the gateway's user only."""
    for one in (folder, folder / "bodies", folder / "spool"):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(one.parent)


def lock(folder: Path) -> TextIO:
    """Take the lock that says who owns this store; it is held as long as the file is open."""
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise QueueLocked(
            f"another gateway (pid {owner}) owns the queue in {folder}: stop it, or set `gateway.state`"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def hold_lock(folder: Path) -> TextIO | None:
    """Keep owners out of a folder that is only read. Raises QueueLocked."""
    path = folder / "lock"
    if not path.exists():
        return None
    file = path.open()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise QueueLocked(f"a gateway owns the queue in {folder}: stop it first") from error
    return file


def connect(path: Path, schema: str) -> apsw.Connection:
    """Open the file to write, and check it; call `trust` in the end. Raises QueueDamaged, QueueError."""
    if not path.exists():
        _create(path, schema)
    if Log(log_of(path)).damaged:
        raise QueueDamaged(f"in {log_of(path).name} committed messages stand behind what cannot be read")
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: apsw.Connection, path: Path) -> None:
    # Closed without more, it would move its log into what may be damaged.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.set_busy_timeout(10_000)
    # Each build of SQLite has a default of its own; ours is that a commit is on stable storage.
    connection.execute("PRAGMA synchronous = FULL")
    found = fault(connection) if path.stat().st_size <= CHECKED_FIRST else ""
    version = connection.pragma("user_version")
    if found or version == 0:
        raise QueueDamaged(found or "it is empty")
    check_version(path, version)


def trust(connection: apsw.Connection) -> None:
    """Let its log move home when it is closed: the file is whole."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)


def read_only(path: Path) -> apsw.Connection:
    """Open the file for queries beside the writer."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(10_000)
    check_version(path, connection.pragma("user_version"))
    return connection


def check_version(path: Path, version: int) -> None:
    """Refuse a file of another version of the schema. Raises QueueError."""
    if version != VERSION:
        age = "a newer" if version > VERSION else "an older"
        raise QueueError(f"{path} was written by {age} version (schema {version}); this one knows {VERSION}")


def _create(path: Path, schema: str) -> None:
    """Make the file under another name first, so that a crash leaves either a whole one or none."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    connection = apsw.Connection(str(new))
    connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
    with connection:
        connection.execute(schema)
    connection.close()
    sync(new)
    point("queue.create")
    new.rename(path)
    sync(path.parent)
    point("queue.created")


def fault(connection: apsw.Connection) -> str:
    """Read the whole file; gives what is wrong first, "" when nothing is."""
    return next((text for (text,) in connection.execute("PRAGMA quick_check(1)") if text != "ok"), "")


def damaged(path: Path, fault: str, conf: Path | None = None) -> QueueDamaged:
    """Make the error for a damaged file, with the commands that save what is in it."""
    shard, aside = path.parent, _unused(path.parent)
    owner, archive = _owner(path), aside.with_name(f"{aside.name}.tar")
    options = shlex.join(["--conf", str(conf)]) if conf else ""
    return QueueDamaged(
        f"{path} is damaged: {fault}\n"
        f"To save what can be read, with the gateway stopped, as {owner} or root:\n"
        f"  {shlex.join(['mv', str(shard), str(aside)])}\n"
        f"  {shlex.join(['mailward', 'queue', 'salvage', str(aside), str(archive)])} {options}".rstrip()
        + "\nThen start the gateway, and load what was saved:\n"
        + f"  {shlex.join(['mailward', 'queue', 'restore', str(archive)])} {options}".rstrip()
    )


def _unused(folder: Path) -> Path:
    """Name a folder beside a shard that no gateway takes for one; neither it nor its archive is there yet."""
    names = (f"damaged-{folder.name}{f'-{number}' if number else ''}" for number in count())
    both = ((folder.with_name(one), folder.with_name(f"{one}.tar")) for one in names)
    return next(aside for aside, archive in both if not aside.exists() and not archive.exists())


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return "its owner"


def free(connection: apsw.Connection, folder: Path) -> int:
    """Give the bytes that may still be written: on the disk, and where SQLite's own files have holes."""
    found = os.statvfs(folder)
    holes = connection.pragma("freelist_count") * connection.pragma("page_size")
    log = folder / "queue.db-wal"
    return found.f_bavail * found.f_frsize + int(holes) + (log.stat().st_size if log.exists() else 0)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on stable storage."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def keep_body(source: Path, target: Path) -> None:
    """Give a body on disk a name of its own among the bodies, for good.

    A link, not a copy: a forwarded message shares its body with the original, and either may go first.
    """
    point("body.sync")
    sync(source)
    point("body.link")
    target.hardlink_to(source)
    try:
        point("body.folder")
        sync(target.parent)
    except OSError:
        target.unlink()
        raise
    point("body.kept")


def unreadable(body: bytes | FileBody) -> str:
    """Say what is wrong with a body that is a file; "" when it is whole."""
    if not isinstance(body, FileBody):
        return ""
    size = 0
    try:
        with body.path.open("rb") as file:
            while block := file.read(BLOCK):
                size += len(block)
    except OSError as error:
        return f"its text: {body.path}: {error.strerror}"
    return "" if size == body.size else f"its text: {body.path} has {size} bytes instead of {body.size}"


def sweep_files(folder: Path, wanted: Collection[str]) -> None:
    """Drop bodies that no row names, and what was being received when the last owner died."""
    for file in (folder / "spool").iterdir():
        file.unlink()
    for file in (folder / "bodies").iterdir():
        if file.name not in wanted:
            point("body.sweep")
            file.unlink()
