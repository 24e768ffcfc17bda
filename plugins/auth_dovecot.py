"""auth_dovecot: asks a Dovecot on this host, so that its IMAP and our SMTP know the same logins.

Speaks the client's side of Dovecot's authentication protocol (version 1), PLAIN alone, over the socket of its
`service auth`. Each login has a connection of its own: it is local, and Dovecot may be started anew any time.

Options: `socket`, `timeout`. Events: none; `auth.succeeded` and `auth.failed` tell what came of it.
"""

from __future__ import annotations

import asyncio
import base64
import os
from typing import TYPE_CHECKING

from pydantic import Field

from gateway import Accept, Credentials, Defer, Duration, Plugin, Reject, Section, Session, hookimpl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LONGEST_LINE = 8192
#: Lines of a greeting; a Dovecot names its mechanisms in some ten.
_LONGEST_GREETING = 100
_DOUBT = Defer("4.7.0", "temporary authentication failure", reason="unavailable")
#: What a parameter must not hold as it is.
_ESCAPES = str.maketrans({"\1": "\0011", "\t": "\1t", "\n": "\1n", "\r": "\1r", "\0": "\0010"})


class Settings(Section):
    """Where Dovecot answers."""

    #: The socket of Dovecot's `unix_listener`, which the gateway's user may write.
    socket: str = "/var/run/dovecot/auth-client"
    #: The longest wait for an answer. Dovecot lets those wait who were wrong.
    timeout: Duration = Field(default=20.0, gt=0)


class AuthDovecot(Plugin[Settings]):
    """Knows the logins that Dovecot knows."""

    @hookimpl
    async def authenticate(
        self, session: Session, credentials: Credentials
    ) -> Accept | Reject | Defer | None:
        """Have Dovecot compare the password; whom it does not know, another plugin may."""
        if credentials.password is None or "\0" in credentials.login + credentials.password:
            return None
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await self._ask(request(session, credentials))
        except (OSError, ValueError) as error:
            self.log.warning("Dovecot does not answer", socket=self.settings.socket, error=str(error))
            return _DOUBT

    async def _ask(self, asked: str) -> Accept | Reject | Defer | None:
        reader, writer = await asyncio.open_unix_connection(self.settings.socket, limit=_LONGEST_LINE)
        try:
            writer.write(f"VERSION\t1\t2\nCPID\t{os.getpid()}\n".encode())
            await _greeted(reader)
            writer.write(asked.encode("utf-8", "surrogateescape"))
            async for words in _lines(reader):
                if words[:2] in (["OK", "1"], ["FAIL", "1"]):
                    return answer(words)
        finally:
            writer.close()
        raise ValueError("it hung up without an answer")


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    while (line := await reader.readline()).endswith(b"\n"):
        yield line[:-1].decode("utf-8", "replace").split("\t")


async def _greeted(reader: asyncio.StreamReader) -> None:
    """Hear out the greeting. Raises ValueError for that of another protocol."""
    heard = 0
    async for words in _lines(reader):
        heard += 1
        if words == ["DONE"]:
            return
        if heard > _LONGEST_GREETING or (words[0] == "VERSION" and words[1:2] != ["1"]):
            break
    raise ValueError("this is not version 1 of Dovecot's protocol")


def request(session: Session, credentials: Credentials) -> str:
    """Write the request; the password's place is the last (`resp`), as the protocol has it."""
    password = f"\0{credentials.login}\0{credentials.password}".encode("utf-8", "surrogateescape")
    words = ["AUTH", "1", "PLAIN", "service=smtp", f"rip={session.client.ip}"]
    words += ["secured"] if session.tls else []
    words.append(f"resp={base64.b64encode(password).decode()}")
    return "\t".join(one.translate(_ESCAPES) for one in words) + "\n"


def answer(words: list[str]) -> Accept | Reject | Defer | None:
    """Read Dovecot's answer."""
    if words[0] == "OK":
        return Accept()
    if "temp" in words:
        return _DOUBT
    if "user_disabled" in words:
        return Reject("5.7.8", "authentication failed", reason="locked")
    return None
