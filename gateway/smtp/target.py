"""Whom to connect to, and how long to wait for it. Pure: no IO."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that the other host may take (RFC 5321 section 4.5.3.2)."""

    connect: float = 60.0
    #: For the greeting, for each reply, and for each block of content to be taken.
    command: float = 300.0
    #: For the reply to the final dot.
    final: float = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """One address of a host to connect to."""

    host: str
    ip: str
    port: int = 25
    #: It speaks LMTP.
    lmtp: bool = False
    #: A socket on this host, in place of an address.
    path: str = ""

    def __str__(self) -> str:
        return self.address if self.path else f"{self.host}[{self.ip}]:{self.port}"

    @property
    def address(self) -> str:
        """Where it is, whatever its name: "192.0.2.7:25", "[2001:db8::7]:25", "unix:/path"."""
        return str(Endpoint(self.ip, self.port, self.path))
