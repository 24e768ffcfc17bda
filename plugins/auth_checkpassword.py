"""auth_checkpassword: asks a program with checkpassword's interface: vchkpw, checkpassword-pam and their kin.

Replaces qmail-smtpd's AUTH patches and qmail-popup's way to ask. The program gets login and password over its
fd 3; no shell is between. It runs as the gateway's user, or as root where it reads what only root may: then
it is the agent that runs it, by the list that root has of the configuration.

Options: `program`, `as_root`. Events: none; `auth.succeeded` and `auth.failed` tell what came of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from gateway import Accept, Checkpassword, ConfigError, Defer, Plugin, Problem, Section, hookimpl

if TYPE_CHECKING:
    from gateway import Context, Credentials


class Settings(Section):
    """Whom to ask."""

    #: The program with its arguments, each an item of the list; the first is an absolute path. What is to run
    #: when the password is right (`/bin/true`) is the last of them.
    program: list[str] = Field(min_length=1)
    #: Run it as root. Only root may be able to change the program and what files its arguments name, also
    #: behind a `=`, or to make those that are not there.
    as_root: bool = False


class AuthCheckpassword(Plugin[Settings]):
    """Knows the logins that a program knows."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        program = self.settings.program
        if not Path(program[0]).is_absolute():
            problem = Problem(f"{self.stem}.program: {program[0]} is no absolute path", self.place("program"))
            raise ConfigError(problem)
        self._ask = Checkpassword(self.stem, program, self.agency if self.settings.as_root else None)

    @hookimpl
    def startup(self) -> None:
        """Tell what will not be as it is written."""
        if self.settings.as_root and self.agency is None:
            self.log.warning("nobody here can run programs as root: ours runs as the gateway's own user")

    @hookimpl
    async def authenticate(self, credentials: Credentials) -> Accept | Defer | None:
        """Run the program; whom it does not know, another plugin may."""
        return await self._ask.check(credentials)
