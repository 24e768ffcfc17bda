"""Lets one call to the system fail: the n-th of those that can give an error, wherever it is made."""

import builtins
import errno
import io
import os

import apsw

OPENS, WRITES, SYNCS, NAMES = ("open",), ("write", "ftruncate"), ("fsync", "fdatasync"), ("link", "rename")
#: What is told -> the calls that may fail so, and the error.
ERRORS = {
    "EIO": ((*OPENS, *WRITES, *SYNCS, *NAMES), errno.EIO),
    "ENOSPC": ((*WRITES, *NAMES), errno.ENOSPC),
    "EMFILE": (OPENS, errno.EMFILE),
    "fsync": (SYNCS, errno.EIO),
}


class Injector:
    """Counts calls from `arm` on; the n-th of its kind fails, once."""

    def __init__(self, name, nth):
        self._kinds, self._number = ERRORS[name]
        self._left = nth
        self.armed = False
        for kind in {*OPENS, *WRITES, *SYNCS, *NAMES}:
            setattr(os, kind, self._wrapped(kind, getattr(os, kind)))
        io.open = builtins.open = self._wrapped("open", io.open)
        self._vfs = _Vfs(self)

    @property
    def fired(self):
        return self._left <= 0

    def passes(self, kind):
        """Say whether a call may be made; False for the one that fails."""
        if not self.armed or kind not in self._kinds or self._left <= 0:
            return True
        self._left -= 1
        return self._left > 0

    def error(self):
        return OSError(self._number, os.strerror(self._number))

    def of_sqlite(self):
        return {errno.ENOSPC: apsw.FullError, errno.EMFILE: apsw.CantOpenError}.get(
            self._number, apsw.IOError
        )

    def _wrapped(self, kind, call):
        def wrapped(*arguments, **options):
            # Descriptors 0 to 2 are the test's own.
            if arguments[0] not in (0, 1, 2) and not self.passes(kind):
                raise self.error()
            return call(*arguments, **options)

        return wrapped


class _Vfs(apsw.VFS):
    def __init__(self, injector):
        self._injector = injector
        super().__init__("injector", "unix", makedefault=True)

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's names
        if not self._injector.passes("open"):
            raise self._injector.of_sqlite()("injected")
        return _File(name, flags, self._injector)


class _File(apsw.VFSFile):
    def __init__(self, name, flags, injector):
        self._injector = injector
        super().__init__("unix", name, flags)

    def xWrite(self, data, offset):  # noqa: N802
        if not self._injector.passes("write"):
            raise self._injector.of_sqlite()("injected")
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802
        if not self._injector.passes("fsync"):
            raise apsw.IOError("injected")
        super().xSync(flags)
