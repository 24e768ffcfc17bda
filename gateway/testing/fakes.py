"""A clock that stands still until it is moved, and a DNS without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dns.rdata

from gateway.errors import DnsError, DnsNotFound
from gateway.services import Answer, Clock, Dns, a_label

if TYPE_CHECKING:
    from collections.abc import Mapping


class FakeClock(Clock):
    """Starts at a time of day and moves only by `advance`."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def time(self) -> float:
        """Give the time of day in seconds since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Give the same; only differences count."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


class FakeDns(Dns):
    """Answers from a table; what is not in it does not exist.

    A zone maps a kind of record to records as a zone file writes them; in place of a zone, or of its records,
    an error's class says that asking raises it:
    `FakeDns({"example.org": {"MX": ["10 mx.example.org."]}, "slow.example": DnsTemporary})`
    A zone with `"secure": True` is one whose answers DNSSEC has validated.
    """

    def __init__(self, zones: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.zones: dict[str, Any] = {a_label(name): zone for name, zone in (zones or {}).items()}
        #: Every question, in order: (name, kind).
        self.asked: list[tuple[str, str]] = []

    @property
    def validates(self) -> bool:
        """Whether answers can be `secure`: those of the table can."""
        return True

    async def lookup(self, name: str, kind: str) -> Answer:
        """Give the records of the table as dnspython's objects; a CNAME leads on to another name."""
        name = a_label(name)
        self.asked.append((name, kind))
        zone = self.zones.get(name, {})
        found = zone if isinstance(zone, type) else zone.get(kind, ())
        if isinstance(found, type) and issubclass(found, DnsError):
            raise found(f"{kind} of {name}")
        secure = isinstance(zone, dict) and bool(zone.get("secure"))
        if not found and kind != "CNAME" and isinstance(zone, dict) and "CNAME" in zone:
            answer = await self.lookup(zone["CNAME"][0].removesuffix("."), kind)
            return answer._replace(secure=secure and answer.secure)
        if not found:
            raise DnsNotFound(f"no {kind} record for {name}")
        return Answer([dns.rdata.from_text("IN", kind, text) for text in found], secure, name)
