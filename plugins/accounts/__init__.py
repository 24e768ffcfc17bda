"""accounts: say who controls a local part. Replaces qmail-getpw and users/assign.

Options, in the order in which they are asked: `assign` (qmail's users/assign, or the users/cdb made of it),
`virtual` (accounts that are no system users), `system`, `floor` and `break` (users of this machine), `alias`
(who gets what nobody else has). The first that knows a local part has it.

Without `alias` there is one all the same, in the state folder, with a Maildir for the postmaster (unless
`gateway.postmaster` names somebody else) and nothing else: qmail's installation asks for the same, since
somebody must be told when mail goes wrong.

A virtual account `abc` has the local parts `abc`, and `abc-...`, which `virtual_domains` makes. With a
`break` of its own, such as `+`, that character counts like `-` in what senders write: `abc-joe+tag` has
the extension `joe-tag`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway import Account, ConfigError, GatewayError, Place, Plugin, Problem, accounts, controls, hookimpl

from .alias import as_alias, make_alias

if TYPE_CHECKING:
    from pathlib import Path

    from gateway import Context

Settings = accounts.Settings


class Accounts(Plugin[Settings]):
    """Looks an account up, without side effects."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._assign: controls.ControlFile[accounts.Assignments] | None = None
        if self.settings.assign:
            path = self.site.base / self.settings.assign
            self._assign = self._open(path)

    @hookimpl
    def startup(self) -> None:
        """Make the home of the default alias."""
        if self.settings.alias is None:
            make_alias(self.site.state / "alias", self.site.hostname, self.site.postmaster)

    @hookimpl
    async def account(self, local_part: str) -> Account | None:
        """Give the account of a local part; raises when nobody can tell now."""
        if self._assign and (found := self._assign.get().find(local_part)):
            return found
        if found := self._virtual(local_part):
            return found
        if self.settings.system:
            # A directory service may take its time.
            separator, floor = self.settings.separator, self.settings.floor
            found = await asyncio.to_thread(accounts.find_user, local_part, separator, floor)
            if found:
                return found
        home = self.site.state / "alias"
        if self.settings.alias is None and not home.is_dir():
            return None  # no gateway has run here yet, so `check` asks
        alias = self.settings.alias or accounts.Home(home=str(home))
        dash, ext = as_alias(local_part, self.settings.separator)
        return self._account("alias", alias, dash, ext, f"{self.place('alias') or 'accounts'}")

    def _virtual(self, local: str) -> Account | None:
        """Give the virtual account with the longest name that has this local part."""
        for at in range(len(local), 0, -1):
            account = self.settings.virtual.get(local[:at])
            if account is None:
                continue
            separator = account.separator or self.settings.separator
            if at < len(local) and local[at] not in ("-", separator):
                continue
            dash = "-" if at < len(local) else ""
            ext = local[at + 1 :].replace(separator, "-")
            return self._account(
                local[:at], account, dash, ext, str(self.place("virtual", local[:at]) or self.stem)
            )
        return None

    def _account(self, name: str, account: accounts.Home, dash: str, ext: str, rule: str) -> Account:
        home = self.site.base / account.home
        uid, gid = account.uid, account.gid
        if uid is None or gid is None:
            try:
                owner = home.stat()
            except FileNotFoundError:
                raise GatewayError(f"the home {home} does not exist") from None
            uid = owner.st_uid if uid is None else uid
            gid = owner.st_gid if gid is None else gid
        return Account(name, uid, gid, str(home), dash, ext, rule)

    def _open(self, path: Path) -> controls.ControlFile[accounts.Assignments]:
        try:
            return controls.ControlFile(path, accounts.parse_assign, "accounts.assign", self.place("assign"))
        except accounts.AssignError as error:
            raise ConfigError(Problem(str(error), Place(str(path), error.line))) from error
