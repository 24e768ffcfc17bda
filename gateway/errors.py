"""Every exception that the gateway raises on purpose.

GatewayError
├── ConfigError           a setting is wrong: `file:line: message`
│   └── PluginError       a plugin file cannot be loaded
├── AddressError          bytes that are no mail address
├── MessageError
│   ├── MessageTooBig     over a size limit               (552 5.3.4)
│   └── MessageMalformed  bytes that no message may hold  (550 5.5.2)
├── QueueError            the store cannot do it now      (451 4.3.0)
│   ├── QueueFull         no room on stable storage       (452 4.3.1)
│   ├── QueueLocked       another gateway owns it
│   ├── ClaimLost         another node has taken the claim over
│   └── QueueDamaged      the store's file is not whole
├── ArchiveError          an archive of a queue is not whole, or cannot be written
├── JournalError          events cannot be made safe now  (451 4.3.0)
├── DnsError
│   ├── DnsNotFound       the name, or this kind of record of it, does not exist
│   └── DnsTemporary      no answer that counts; ask again
├── DialogueError         the other host was lost, fell silent, or broke SMTP's rules
│   ├── Unreachable       it did not even answer the connection in time
│   └── TlsFailed         TLS with it is not what it has to be
├── MilterError           the other side of a milter connection was lost, or broke the protocol
├── ListenError           a listener cannot have its address
├── LinkLost              another process of the gateway has ended
├── AgentError            the agent does not become that account, or is gone
├── IsolationError        a plugin's own thread or process cannot be asked now
└── ControlError          no running gateway, or it refused a command
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class GatewayError(Exception):
    """Root of all errors that the gateway raises on purpose; the text says what to do next."""


class Place(NamedTuple):
    """Where in a file something stands; lines and columns count from 1."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """Write `file:line`, as compilers do."""
        return f"{self.file}:{self.line}" if self.line else self.file


class Problem(NamedTuple):
    """One thing that is wrong in the configuration."""

    message: str
    place: Place | None = None

    def __str__(self) -> str:
        """Write `file:line: message`."""
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigError(GatewayError):
    """The configuration is wrong; nothing was started or changed.

    `problems` holds each one, so that one `check` shows them all.
    """

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class PluginError(ConfigError):
    """A plugin file cannot be loaded, or breaks the contract of a plugin."""


class AddressError(GatewayError):
    """These bytes are no mail address."""


class MessageError(GatewayError):
    """A message cannot be taken."""


class OutOfMemory(GatewayError):
    """There is no room in memory for the header of another message now."""


class MessageTooBig(MessageError):
    """The message, or its header, is over the limit."""


class MessageMalformed(MessageError):
    """A bare CR, a bare LF or a NUL in the message (RFC 5321 section 2.3.8)."""


class QueueError(GatewayError):
    """The store cannot do this now; what it holds is safe."""


class QueueFull(QueueError):
    """No room is left on stable storage."""


class QueueLocked(QueueError):
    """Another process owns this shard."""


class ClaimLost(QueueError):
    """What was claimed here is another node's now: what is known of the attempt cannot be stored."""


class QueueDamaged(QueueError):
    """The store's file fails its own check."""


class ArchiveError(GatewayError):
    """An archive is damaged, cut off or of a newer version: nothing of it was loaded."""


class JournalError(GatewayError):
    """The journal cannot be written, or another process writes it; facts are not safe on disk."""


class DnsError(GatewayError):
    """A name was looked up in vain."""


class DnsNotFound(DnsError):
    """There is no such name, or it has no such record: asking again changes nothing."""


class DnsTemporary(DnsError):
    """No server gave an answer that counts (time-out, SERVFAIL, refused, a loop): ask again later."""


class DialogueError(GatewayError):
    """The dialogue with another host ended before it had taken anything: try again, there or elsewhere."""

    def __init__(self, text: str, status: str = "4.4.2", reply: str = "") -> None:
        super().__init__(text)
        self.status = status
        #: What the host said, if that was the reason.
        self.reply = reply


class Unreachable(DialogueError):
    """Nobody answered a connection in time; the address may be left alone for a while."""


class TlsFailed(DialogueError):
    """TLS is not offered, fails, or shows a certificate that will not do where that counts."""

    def __init__(self, text: str, status: str = "4.7.5", reply: str = "", *, kind: str = "") -> None:
        super().__init__(text, status, reply)
        #: The result type of a TLS report (RFC 8460 section 4.3).
        self.kind = kind or "validation-failure"
        #: Our own address of the connection; "" before there was one.
        self.source = ""


class MilterError(GatewayError):
    """The other side of a milter connection was lost, fell silent, or broke the protocol."""


class ListenError(GatewayError):
    """A listener cannot have its address."""


class LinkLost(GatewayError):
    """Another process of this gateway has ended, and what was asked of it is not known."""


class AgentError(GatewayError):
    """The agent does not become that account, does not read that file, or is gone."""


class IsolationError(GatewayError):
    """A plugin's own thread or process cannot be asked now."""


class ControlError(GatewayError):
    """No gateway is running here, or it refused the command."""
