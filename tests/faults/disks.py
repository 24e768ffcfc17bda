"""A disk that remembers every write, and can be cut off at any moment of what it remembers.

What was not synced when the power goes may be there, not there, or there in part, sector by sector and in
any order. `Recorder` keeps what SQLite does to its files (by a VFS) and what the store does to bodies (by the
calls of `os`); `at` gives the folder as it may be found after a cut at a moment.
"""

import contextlib
import os
from pathlib import Path

import apsw

SECTOR = 512


class Recorder:
    """All that was done below a folder, in order."""

    def __init__(self, folder):
        self.folder = folder
        #: (what, path, ...) of each step.
        self.steps = []
        self._start = {}
        #: What is known to be on stable storage of files that were written elsewhere.
        self._synced = {}

    @contextlib.contextmanager
    def recording(self):
        """Record while the block lasts; the folder's files then are where it starts."""
        self._start = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        vfs = _Vfs(self)
        undo = [(name, getattr(os, name)) for name in ("fsync", "link", "unlink")]
        for name, call in undo:
            setattr(os, name, self._recorded(name, call))
        try:
            yield self
        finally:
            vfs.unregister()
            for name, call in undo:
                setattr(os, name, call)

    def note(self, *step):
        """Add a step."""
        self.steps.append(step)

    def _recorded(self, name, call):
        def recorded(target, *more, **options):
            result = call(target, *more, **options)
            if name == "fsync":
                path = Path(f"/proc/self/fd/{target}").readlink()
                if path.is_file():
                    self._synced[path] = path.read_bytes()
                else:
                    self.note("named", path)
            elif name == "link":
                self.note("link", Path(more[0]), self._synced.get(Path(target), b""))
            else:
                self.note("unlink", Path(target))
            return result

        return recorded

    def at(self, moment, random):
        """Give path -> bytes of every file after a cut before step `moment`."""
        safe = {path: bytearray(content) for path, content in self._start.items()}
        for path, steps in self._pending_at(moment, safe).items():
            for step in steps:
                if step[0] == "write":
                    _tear(safe.setdefault(path, bytearray()), *step[1:], random)
                elif random.random() < 0.5:
                    _do(safe, path, *step)
        return safe

    def _pending_at(self, moment, safe):
        """Do what was synced before a moment; gives what was not: file or folder -> steps."""
        pending = {}
        for what, path, *more in self.steps[:moment]:
            if what in ("write", "truncate"):
                pending.setdefault(path, []).append((what, *more))
            elif what in ("link", "unlink"):
                pending.setdefault(path.parent, []).append((what, path, *more))
            else:
                for step in pending.pop(path, ()):
                    _do(safe, path, *step)
        return pending


def _do(files, place, what, *more):
    if what == "link":
        files[more[0]] = bytearray(more[1])
    elif what == "unlink":
        files.pop(more[0], None)
    else:
        _apply(files.setdefault(place, bytearray()), what, *more)


def _apply(content, what, *more):
    if what == "truncate":
        del content[more[0] :]
        return
    offset, data = more
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _tear(content, offset, data, random):
    """Write some sectors of it."""
    start = offset
    keep = random.random()
    while start < offset + len(data):
        end = min(offset + len(data), (start // SECTOR + 1) * SECTOR)
        if random.random() < keep:
            _apply(content, "write", start, data[start - offset : end - offset])
        start = end


class _Vfs(apsw.VFS):
    """SQLite's way to the disk, with a copy of each write for the recorder."""

    def __init__(self, recorder):
        self._recorder = recorder
        super().__init__("recorder", "unix", makedefault=True)

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        if not flags[0] & (apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL):
            return apsw.VFSFile("unix", name, flags)
        return _File(name, flags, self._recorder)


class _File(apsw.VFSFile):
    def __init__(self, name, flags, recorder):
        self._path = Path(name if isinstance(name, str) else name.filename())
        self._note = recorder.note
        super().__init__("unix", name, flags)

    def xWrite(self, data, offset):  # noqa: N802
        self._note("write", self._path, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, size):  # noqa: N802
        self._note("truncate", self._path, size)
        super().xTruncate(size)

    def xSync(self, flags):  # noqa: N802
        super().xSync(flags)
        self._note("sync", self._path)
