"""auth_pam: asks PAM, as other services of this host do, for users of passwd and what else PAM knows.

Takes the place of checkpassword-pam. /etc/shadow is root's, so a process of root's asks: the agent starts it
for each login, and it loads PAM and nothing of the mail.

Options: `service`. Events: none; `auth.succeeded` and `auth.failed` tell what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gateway import PAM_SERVICE, Accept, Checkpassword, Defer, Plugin, Section, hookimpl, pam_program

if TYPE_CHECKING:
    from gateway import Context, Credentials


class Settings(Section):
    """Which of PAM's rules."""

    #: The file of rules in /etc/pam.d. Where it is missing, those of `other` count.
    service: str = Field(default=PAM_SERVICE, pattern=r"^[A-Za-z0-9_-]+$")


class AuthPam(Plugin[Settings]):
    """Knows the logins that PAM knows."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._ask = Checkpassword(self.stem, pam_program(self.settings.service), self.agency)

    @hookimpl
    def startup(self) -> None:
        """Tell what will not work."""
        if self.agency is None:
            self.log.warning("nobody here reads /etc/shadow: PAM knows the gateway's own user alone, or LDAP")

    @hookimpl
    async def authenticate(self, credentials: Credentials) -> Accept | Defer | None:
        """Ask PAM; whom it does not know, another plugin may."""
        return await self._ask.check(credentials)
