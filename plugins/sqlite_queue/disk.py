"""What lies beside the SQLite file: its folder, its lock, and the bodies too big for a row."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, TextIO

import apsw

from gateway import point
from gateway.queue import QueueDamaged, QueueError, QueueLocked

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

VERSION = 2
#: A file up to this size is read whole before it is used; of a larger one that is done beside the work, since
#: a gateway with a million messages must be back in seconds. What SQLite meets on its way is found at once.
CHECKED_FIRST = 64 * 1024 * 1024


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


def connect(path: Path, schema: str) -> apsw.Connection:
    """Open the file to write, and check it. Raises QueueDamaged, QueueError."""
    if not path.exists():
        _create(path, schema)
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(10_000)
        # Each build of SQLite has a default of its own; ours is that a commit is on stable storage.
        connection.execute("PRAGMA synchronous = FULL")
        found = fault(connection) if path.stat().st_size <= CHECKED_FIRST else ""
        version = connection.pragma("user_version")
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        raise damaged(path, str(error)) from error
    except apsw.Error as error:
        raise QueueError(f"{path}: {error}") from error
    if found or version == 0:
        raise damaged(path, found or "it is empty")
    _check_version(path, version)
    return connection


def read_only(path: Path) -> apsw.Connection:
    """Open the file for queries beside the writer."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(10_000)
    _check_version(path, connection.pragma("user_version"))
    return connection


def _check_version(path: Path, version: int) -> None:
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


def damaged(path: Path, fault: str) -> QueueDamaged:
    """Make the error for a damaged file, with the way to save what is in it."""
    aside = path.with_name("damaged.db")
    return QueueDamaged(
        f"{path} is damaged: {fault}\n"
        f"To save what can be saved, with the gateway stopped:\n"
        f"  mv {path} {aside}   (its -wal and -shm files too)\n"
        f"  sqlite3 {aside} .recover | sqlite3 {path}\n"
        f"  sqlite3 {path} 'PRAGMA user_version = {VERSION}; PRAGMA quick_check'"
    )


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


def sweep_files(folder: Path, wanted: Collection[str]) -> None:
    """Drop bodies that no row names, and what was being received when the last owner died."""
    for file in (folder / "spool").iterdir():
        file.unlink()
    for file in (folder / "bodies").iterdir():
        if file.name not in wanted:
            point("body.sweep")
            file.unlink()
