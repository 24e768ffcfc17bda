"""The accounts that root may become, by name: what the configuration lists, users/assign, passwd.

A name that is in several has what the first says. Root's and the gateway's own user and group are in none:
with the group of the gateway, an account could read its queue.
"""

from __future__ import annotations

import contextlib
import pwd
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.accounts.assign import Assignments, parse_assign
from gateway.accounts.ownership import owned, refuse_changeable
from gateway.accounts.passwd import HIGHEST_ID
from gateway.errand import Way, is_usual
from gateway.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.envelope import Account


@dataclass(frozen=True, slots=True)
class Listed:
    """One account."""

    user: str
    uid: int
    gid: int
    home: str
    #: Its groups are those of the system's user of this name.
    system: bool = False
    #: What lines of users/assign lead to its files by another dash than usual.
    ways: tuple[Way, ...] = ()


class Book:
    """`plan` is what `gateway.partition.plan` says of accounts; `own` is who the gateway is."""

    def __init__(self, plan: Mapping[str, Any], own: pwd.struct_passwd) -> None:
        self._plan = plan
        self._own = own
        self._assign: tuple[tuple[int, ...], Assignments] | None = None

    def find(self, name: str, home: str) -> Listed:
        """Give an account that has this home. Raises AgentError for what is not listed."""
        for found in self._all(name):
            if found.home != home:
                continue
            if not 0 < found.uid <= HIGHEST_ID or found.uid == self._own.pw_uid:
                raise AgentError(f"{name}: nothing is delivered as uid {found.uid}")
            if not 0 < found.gid <= HIGHEST_ID or found.gid == self._own.pw_gid:
                raise AgentError(f"{name}: nothing is delivered with the group {found.gid}")
            return replace(found, ways=self._ways(found))
        raise AgentError(f"{name}: no account of that name has the home {home}")

    def _all(self, name: str) -> Iterator[Listed]:
        listed = [self._plan["virtual"].get(name), self._plan["alias"] if name == "alias" else None]
        for home, uid, gid in filter(None, listed):
            yield _owned(name, home, uid, gid)
        yield from self._assigned(name)
        if self._plan["system"]:
            yield from self._user(name)

    def _user(self, name: str) -> Iterator[Listed]:
        try:
            found = pwd.getpwnam(name)
        except (KeyError, ValueError):
            return
        if found.pw_uid < self._plan["floor"]:
            raise AgentError(f"{name}: uid {found.pw_uid} is below accounts.floor, {self._plan['floor']}")
        if Path(found.pw_dir).stat().st_uid == found.pw_uid:
            yield Listed(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, system=True)

    def _assigned(self, name: str) -> Iterator[Listed]:
        yield from dict.fromkeys(Listed(name, one.uid, one.gid, one.home) for one, _ in self._lines(name))

    def _ways(self, account: Listed) -> tuple[Way, ...]:
        whose = account.uid, account.gid, account.home
        ways: dict[Way, None] = {}
        # Of a file that does not count, nothing does; who is listed elsewhere is listed all the same.
        with contextlib.suppress(AgentError, OSError, ValueError):
            for one, more in self._lines(account.user):
                usual = is_usual(one.dash, one.ext or ("any" if more else ""))
                if (one.uid, one.gid, one.home) == whose and not usual:
                    ways[Way(one.dash, one.ext, more)] = None
        return tuple(ways)

    def _lines(self, name: str) -> Iterator[tuple[Account, bool]]:
        """Give the lines of users/assign that name a user, and whether more may follow their local part."""
        path = self._plan["assign"]
        if not path:
            return
        status = refuse_changeable(path).stat()
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._assign is None or self._assign[0] != seen:
            text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
            self._assign = seen, parse_assign(text, path)
        for table, more in ((self._assign[1].exact, False), (self._assign[1].prefixes, True)):
            yield from ((one, more) for one in table.values() if one.user == name)


def _owned(name: str, home: str, uid: int | None, gid: int | None) -> Listed:
    """Fill in the owner of a home, where the configuration gives none. Raises AgentError.

    It counts where only root says which folder that is: else somebody could name a home of another's.
    """
    if uid is None or gid is None:
        try:
            owner = owned(home)
        except AgentError as error:
            raise AgentError(f"{name}: give its uid and gid, for its home does not say: {error}") from None
        uid, gid = owner.st_uid if uid is None else uid, owner.st_gid if gid is None else gid
    return Listed(name, uid, gid, home)
