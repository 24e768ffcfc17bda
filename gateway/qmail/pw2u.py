"""qmail-pw2u: makes lines for users/assign of a password file (qmail spec 6.2)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, TEMPORARY
from gateway.qmail.options import OptionError, options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.qmail.place import Place

_USAGE = "qmail-pw2u: usage: qmail-pw2u [ -/ohHuUC ] [ -cchar ]\n"
_ALIAS = b"alias"


class StopError(Exception):
    """No further line can be made."""


class HomelessError(Exception):
    """A home is missing, and -h asks that nothing be written then."""


class Users:
    """What the options and the files in users/ say."""

    def __init__(
        self, chosen: list[tuple[str, bytes]], folder: bytes, owner_of: Callable[[bytes], int | None]
    ) -> None:
        self._letters = {letter for letter, _ in chosen}
        self._owner_of = owner_of
        self._break = next((value[:1] for letter, value in reversed(chosen) if letter == "c"), b"-")
        self._dash = b"-/" if "/" in self._letters else b"-"
        self._include, self._exclude = _names(folder, b"include"), _names(folder, b"exclude")
        self._mailnames = {
            words[0]: [name for name in words[1:] if name]
            for words in (line.split(b":") for line in _lines(folder, b"mailnames") or ())
        }
        self._subusers = _lines(folder, b"subusers") or []
        self._append = _read(folder, b"append") or b""

    def assign(self, passwd: bytes) -> Iterator[bytes]:
        """Give the lines of users/assign. Raises StopError, when all given so far still counts."""
        known: dict[bytes, bytes] = {}
        for line in passwd.splitlines():
            user = self._user(line)
            if user is None:
                continue
            name, rest = user
            known[name] = rest
            if name == _ALIAS:
                yield b"+:%b:%b::\n" % (rest, self._dash)
            for one in self._mailnames.get(name, [name]):
                yield from self._pair(one, rest, b"", b"", b"")
        if _ALIAS not in known:
            raise StopError("there is no user alias")
        for line in self._subusers:
            words = line.split(b":")
            if len(words) > 3 and words[1] in known:  # noqa: PLR2004 - sub:user:pre:
                yield from self._pair(words[0], known[words[1]], self._dash, words[2], words[2] + b"-")
        yield self._append + b".\n"

    def _pair(self, name: bytes, rest: bytes, dash: bytes, exact: bytes, prefix: bytes) -> Iterator[bytes]:
        yield b"=%b:%b:%b:%b:\n" % (name, rest, dash, exact)
        if "C" not in self._letters:
            yield b"+%b%b:%b:%b:%b:\n" % (name, self._break, rest, self._dash, prefix)

    def _user(self, line: bytes) -> tuple[bytes, bytes] | None:
        """Give the name and `user:uid:gid:home` of a line, None for one that has no mail."""
        words = line.split(b":")
        if len(words) < 7 or not words[2].isdigit() or not int(words[2]):  # noqa: PLR2004 - passwd(5)
            return None
        name, uid, gid, home = words[0], words[2], words[3], words[5]
        if (self._include is not None and name not in self._include) or name in (self._exclude or ()):
            return None
        if name != name.lower() and "u" not in self._letters:
            return None
        owner = self._owner_of(home)
        if owner is None and "h" in self._letters:
            raise HomelessError(f"the home of {os.fsdecode(name)!a} is not there")
        if owner is None or (owner != int(uid) and "H" not in self._letters):
            return None
        return name, b":".join((name, uid, gid, home))


def main(_name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    try:
        chosen, _ = options(arguments, "/ohHuUCc:")
    except OptionError as error:
        sys.stderr.write(f"qmail-pw2u: {error}\n{_USAGE}")
        return PERMANENT
    users = Users(chosen, os.path.join(place.home, b"users"), owner)
    code, text = assigned(users, sys.stdin.buffer.read())
    sys.stdout.buffer.write(text)
    return code


def assigned(users: Users, passwd: bytes) -> tuple[int, bytes]:
    """Give the exit code and what is printed."""
    made: list[bytes] = []
    try:
        for line in users.assign(passwd):
            made.append(line)  # noqa: PERF402 - lines before an error count
    except HomelessError as error:
        sys.stderr.write(f"qmail-pw2u: fatal: {error}\n")
        return TEMPORARY, b""
    except StopError as error:
        sys.stderr.write(f"qmail-pw2u: fatal: {error}\n")
        return TEMPORARY, b"".join(made)
    return 0, b"".join(made)


def owner(home: bytes) -> int | None:
    """Give the owner of a home, None when it is not there."""
    try:
        return os.stat(home).st_uid
    except FileNotFoundError:
        return None


def _names(folder: bytes, name: bytes) -> set[bytes] | None:
    lines = _lines(folder, name)
    return None if lines is None else set(lines)


def _lines(folder: bytes, name: bytes) -> list[bytes] | None:
    text = _read(folder, name)
    return None if text is None else [line.rstrip(b" \t") for line in text.splitlines() if line.strip()]


def _read(folder: bytes, name: bytes) -> bytes | None:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
