"""Where a program finds the gateway's state and qmail's control files."""

import os

#: Written by `contrib/qmail/install` beside the executables: the path of the state folder.
MARK = b"mailward-state"
#: In the state folder: what the gateway says of itself, in the form of control files.
CONTROL = b"qmail-control"
_STATE = b"/var/lib/mailward"
_HOME = b"/var/qmail"


class Place:
    """The environment of a program, and the folders that it works with."""

    __slots__ = ("env", "folder")

    def __init__(self, env: dict[bytes, bytes], folder: bytes = b"") -> None:
        self.env = env
        #: Where the executables are; empty when they are not installed.
        self.folder = folder

    @property
    def home(self) -> bytes:
        """What was qmail's home: the folder of the executables' folder."""
        return os.path.dirname(self.folder) if self.folder else _HOME

    @property
    def state(self) -> bytes:
        """The gateway's state folder."""
        given = self.env.get(b"MAILWARD_STATE")
        return given or first_line(os.path.join(self.folder, MARK)) or _STATE

    def control(self, name: bytes) -> bytes | None:
        """Give the first line of a control file: qmail's own, else what the gateway says of itself."""
        for folder in (os.path.join(self.home, b"control"), os.path.join(self.state, CONTROL)):
            line = first_line(os.path.join(folder, name))
            if line is not None:
                return line
        return None


def first_line(path: bytes) -> bytes | None:
    """Read a control file of one line (qmail spec 1.1): blanks at its end do not count. None if absent."""
    try:
        with open(path, "rb") as file:
            return file.readline(65536).rstrip(b" \t\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
