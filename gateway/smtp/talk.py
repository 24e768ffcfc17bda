"""The words of a dialogue with another host, and what one transaction carries and brings. Pure: no IO.

A dialogue is a generator: it yields what the connection has to do (Say, Hear, Secure, Pour) and is sent the
outcome, or is thrown a DialogueError.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gateway.errors import DialogueError

if TYPE_CHECKING:
    from gateway.address import Address
    from gateway.envelope import Result
    from gateway.smtp.wire import RemoteReply

R = TypeVar("R")


class Say(NamedTuple):
    """Send these bytes; everything heard so far must have been taken."""

    data: bytes


class Hear(NamedTuple):
    """Wait for the next reply, and send it in."""

    #: After the final dot a host may think for longer (RFC 5321 section 4.5.3.2.6).
    final: bool = False


class Secure(NamedTuple):
    """Begin TLS; nothing may have come behind the reply to STARTTLS (RFC 3207 section 4.2)."""


class Pour(NamedTuple):
    """Send the content up to the final dot; send in a reply that came before it, else None."""


Talk = Generator[Say | Hear | Secure | Pour, Any, R]


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are at a host that asks for it."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one transaction carries besides the content."""

    sender: Address
    recipients: Sequence[Address]
    #: Octets of the content; an estimate will do (RFC 1870 section 6).
    size: int
    eight_bit: bool = False
    #: The header holds UTF-8 that its sender declared (RFC 6531).
    international: bool = False
    #: RFC 8689: only under TLS, and only to a host that promises the same.
    require_tls: bool = False
    #: RET and ENVID as received (RFC 3461).
    params: Mapping[str, str] = field(default_factory=dict)
    #: NOTIFY and ORCPT as received, for each recipient; none at all when nobody gave any.
    rcpt_params: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a transaction ended for one recipient."""

    result: Result
    status: str
    text: str
    reply: str = ""


def ask(line: bytes) -> Talk[RemoteReply]:
    """Say a command and hear the reply; b"" is a command that was sent ahead."""
    if line:
        yield Say(line + b"\r\n")
    reply: RemoteReply = yield Hear()
    return reply


def expect(code: int, reply: RemoteReply, command: str) -> None:
    """Go on after this code alone. Raises DialogueError."""
    if reply.code != code or reply.mixed:
        status = reply.status if reply.status.startswith("4") else "4.5.0"
        raise DialogueError(f"it refused us at {command}", status, str(reply))
