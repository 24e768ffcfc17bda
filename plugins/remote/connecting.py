"""Connects to one address of a destination as its TLS policy asks, and tells what became of TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import DialogueError, TlsFailed, Unreachable, events
from gateway.smtp import Connection

from .tls import Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.smtp import Terms, Timeouts

    from .backoff import Backoff
    from .hosts import Candidate
    from .mta_sts import MtaSts
    from .routes import Hop
    from .sts_policy import StsPolicy
    from .tls import Guard


class Connector:
    """Opens connections; `emit` is told of each handshake."""

    def __init__(
        self,
        helo: str,
        timeouts: Timeouts,
        guard: Guard,
        sts: MtaSts,
        backoff: Backoff,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._helo = helo
        self._timeouts = timeouts
        self._guard = guard
        self._sts = sts
        self._backoff = backoff
        self._emit = emit

    async def policy(self, hop: Hop, *, strict: bool) -> StsPolicy | None:
        """Give the MTA-STS policy that counts for mail by this hop; a route is none of its business."""
        if hop.hosts or not (hop.tls == "mta-sts" or strict):
            return None
        try:
            return await self._sts.find(hop.domain)
        except TlsFailed as error:
            self._failed("", hop, error, "sts")
            return None

    async def connect(
        self, hop: Hop, candidate: Candidate, sts: StsPolicy | None, *, strict: bool
    ) -> Connection:
        """Connect to one address. Raises DialogueError when it will not do now."""
        trouble = await self._backoff.known(candidate.target)
        if self._backoff.rests(trouble):
            raise DialogueError("it has not answered of late, and is left alone for a while", "4.4.1")
        try:
            connection = await self._secured(hop, candidate, sts, strict=strict)
        except Unreachable:
            await self._backoff.timed_out(candidate.target, trouble)
            raise
        except DialogueError:
            await self._backoff.answered(candidate.target, trouble)
            raise
        await self._backoff.answered(candidate.target, trouble)
        return connection

    async def _secured(
        self, hop: Hop, candidate: Candidate, sts: StsPolicy | None, *, strict: bool
    ) -> Connection:
        way, peer = Way((None,)), str(candidate.target)
        try:
            way = await self._guard.way(hop, candidate, sts, strict=strict)
        except TlsFailed as error:
            self._failed(peer, hop, error, "sts" if sts else "")
            raise
        *others, last = way.tries
        for terms in others:
            try:
                return await self._open(hop, candidate, way, terms)
            except TlsFailed as error:
                self._failed(peer, hop, error, way.policy_type)
        try:
            return await self._open(hop, candidate, way, last)
        except TlsFailed as error:
            self._failed(peer, hop, error, way.policy_type)
            raise

    async def _open(self, hop: Hop, candidate: Candidate, way: Way, terms: Terms | None) -> Connection:
        connection = await Connection.connect(
            candidate.target, self._helo, self._timeouts, terms, hop.login, hop.sources
        )
        if connection.secure:
            version, cipher = connection.tls
            self._emit(
                events.TlsEstablished(
                    version=version,
                    cipher=cipher,
                    server_name=terms.name if terms else "",
                    source_ip=connection.source,
                    verified=way.verified if terms is way.tries[0] else "",
                    **self._about(str(candidate.target), hop, way.policy_type),
                )
            )
        return connection

    def _failed(self, peer: str, hop: Hop, error: TlsFailed, policy_type: str) -> None:
        self._emit(
            events.TlsFailed(
                error=str(error),
                result_type=error.kind,
                reply=error.reply,
                source_ip=error.source,
                **self._about(peer, hop, policy_type),
            )
        )

    def _about(self, peer: str, hop: Hop, policy_type: str) -> dict[str, Any]:
        return {
            "plugin": "remote",
            "peer": peer,
            "policy": hop.tls,
            "policy_type": policy_type,
            "domain": hop.domain,
        }
