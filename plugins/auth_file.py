"""auth_file: logins in a file, their passwords hashed with argon2. Replaces checkpassword and its users.

`mailward passwd LOGIN` writes the file; a change counts at once. SCRAM-SHA-256 is offered, and works for
those logins whose keys were written, too (`passwd --scram`): whoever reads such keys can guess passwords
faster than against argon2. A hash is checked in a thread, a few at a time, since each takes memory and time
by design.

Options: `file`. Events: none; `auth.succeeded` and `auth.failed` tell what came of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import argon2

from gateway import Accept, Plugin, Reject, Section, controls, hookimpl, passwords

if TYPE_CHECKING:
    from gateway import Context, Credentials, ScramKeys, Session

#: Passwords that are checked at one time; each takes 64 MiB.
_AT_ONCE = 2


class Settings(Section):
    """Where the logins are."""

    #: The file; relative paths start beside conf.d.
    file: str = "passwords"


class AuthFile(Plugin[Settings]):
    """Knows the logins of one file."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        path = self.site.base / self.settings.file
        self._file = controls.ControlFile(path, passwords.parse, "auth_file.file", self.place("file"))
        self._hasher = argon2.PasswordHasher()
        #: What a login that does not exist is checked against, so that it takes as long.
        self._nobody = self._hasher.hash("")
        self._turn = asyncio.Semaphore(_AT_ONCE)

    @hookimpl
    async def authenticate(self, session: Session, credentials: Credentials) -> Accept | Reject | None:
        """Compare the password; SCRAM has proved it already."""
        del session
        kept = self._file.get().get(credentials.login)
        if credentials.password is not None:
            async with self._turn:
                proved = await asyncio.to_thread(
                    self._proves, kept.hash if kept else self._nobody, credentials.password
                )
        else:
            proved = kept is not None and kept.scram is not None
        # Looked at again: who locks a login ends the sessions that it has by then, and this is none yet.
        now = self._file.get().get(credentials.login)
        if kept is None or now is None:
            return None
        if not proved:
            return Reject("5.7.8", "authentication failed", reason="credentials")
        if now.locked:
            return Reject("5.7.8", "authentication failed", reason="locked")
        return Accept(rule=f"{self._file.path}: {kept.login}")

    @hookimpl
    def scram_keys(self, login: str) -> ScramKeys | None:
        """Give the keys that were written for a login."""
        kept = self._file.get().get(login)
        return kept.scram if kept else None

    def _proves(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
