"""AUTH behind the protocol: asks the plugins, slows down who guesses, and tells the events.

Failures count by client address (IPv6 by its /64) and by login, over all workers. Each makes the next answer
wait longer; past `limits.auth_failures` a client is sent away without anybody being asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from gateway import events
from gateway.decision import Accept, Defer, Disconnect, Reject
from gateway.events import about
from gateway.hookspecs import Stages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.decision import Decision
    from gateway.envelope import Credentials, ScramKeys, Session
    from gateway.plugin import Services
    from gateway.reception import Reception
    from gateway.settings import Limits

#: Failures are remembered this many seconds.
WINDOW = 600.0
#: The first failure's answer waits this many seconds, each later one twice as long, up to the second.
_FIRST, _LONGEST = 0.25, 8.0
_WRONG = Reject("5.7.8", "authentication failed", reason="credentials")
_TOO_MANY = Disconnect("4.7.0", "too many failed logins, try again later", reason="auth_failures")


class Login:
    """Asks who a client is. `secret` is the gateway's own: see `gateway.smtp.sasl`."""

    def __init__(
        self, reception: Reception, services: Services, limits: Callable[[], Limits], secret: bytes
    ) -> None:
        self._reception = reception
        self._counters = services.counters
        self._limits = limits
        self.secret = secret

    def offers_scram(self, session: Session) -> bool:
        """Whether a plugin keeps keys for SCRAM."""
        return bool(self._reception.chain_of(session).steps["scram_keys"])

    async def over(self, session: Session) -> Disconnect | None:
        """Send away who has failed too often; asked before all that tells right from wrong."""
        limit = self._limits().auth_failures
        if await self._counters.hit(_client(session), WINDOW, 0) < limit:
            return None
        told = about(session)
        event = events.LimitExceeded(**told, limit="auth_failures", allowed=limit)
        self._reception.chain_of(session).emit(event)
        return _TOO_MANY

    async def keys(self, session: Session, login: str) -> ScramKeys | None:
        """Give the SCRAM keys of a login, None when nobody knows it."""
        return (await self._reception.chain_of(session).ask(Stages.scram_keys, session, login)).value

    async def check(self, session: Session, credentials: Credentials) -> Decision:
        """Ask `authenticate`; Accept has set `session.user`."""
        chain = self._reception.chain_of(session)
        answer = await chain.ask(Stages.authenticate, session, credentials)
        decision = answer.value or _WRONG
        if not isinstance(decision, Accept):
            return await self._failed(session, credentials.mechanism, credentials.login, decision)
        session.user, session.auth = credentials.login, credentials.mechanism
        told = {**about(session), "plugin": answer.plugin}
        chain.emit(events.AuthSucceeded(**told, mechanism=credentials.mechanism))
        return decision

    async def wrong(self, session: Session, mechanism: str, login: str, reason: str) -> Decision:
        """Hear of an exchange that came to no credentials: `credentials` or `malformed`."""
        decision = Reject(_WRONG.status, _WRONG.text, reason=reason)
        return await self._failed(session, mechanism, login, decision)

    async def _failed(self, session: Session, mechanism: str, login: str, decision: Decision) -> Decision:
        """Tell a failure, and let the answer wait; a doubt of ours is not held against the client."""
        reason = getattr(decision, "reason", "") or "credentials"
        if isinstance(decision, Defer):
            reason = "unavailable"
        told = {**about(session), "user": login, "mechanism": mechanism, "reason": reason}
        self._reception.chain_of(session).emit(events.AuthFailed(**told))
        if isinstance(decision, Reject):
            await self._wait(session, login)
        return decision

    async def _wait(self, session: Session, login: str) -> None:
        hits = [await self._counters.hit(key, WINDOW) for key in (_client(session), f"auth/login/{login}")]
        await asyncio.sleep(min(_LONGEST, _FIRST * 2 ** (min(max(hits), 16) - 1)))


def _client(session: Session) -> str:
    return f"auth/client/{session.client.prefix}"


def secret(state: Path) -> bytes:
    """Give the gateway's secret, made at its first start: the same for all workers, and after a restart."""
    path = state / "secret"
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    new = path.with_name(f"secret.{os.getpid()}")
    new.touch(mode=0o600)
    new.write_bytes(os.urandom(32))
    # Of two that start together one is first; both then read what that one has written.
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(new)
    new.unlink()
    return path.read_bytes()
