"""The client's side of an SMTP connection: what to say, and what an answer means (RFC 5321). Pure: no IO.

A Dialogue's methods are generators: each yields what the connection has to do (Say, Hear, Secure, Pour) and
is sent the outcome, or is thrown a DialogueError. The states of a transaction, and what each answer makes:

  state      2xx          3xx         4xx              5xx              lost, silent, no SMTP
  greeting   (220) go on  elsewhere   elsewhere        elsewhere        elsewhere
  EHLO       (250) go on  elsewhere   elsewhere        HELO instead     elsewhere
  HELO       (250) go on  elsewhere   elsewhere        elsewhere        elsewhere
  STARTTLS   (220) TLS    in plain    in plain         in plain         elsewhere
  MAIL       go on        go on       deferred         failed           elsewhere
  RCPT       taken        taken       that one def.    that one failed  deferred
  DATA       deferred     content     deferred         failed           deferred
  final dot  delivered    deferred    deferred         failed           deferred, perhaps a duplicate

"Elsewhere" is a DialogueError: nothing was taken, so the next address may be tried; 421 to MAIL is one too.
qmail (spec 7.5) sends content after any answer below 400, and fails for good at one without digits.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from gateway.errors import DialogueError, DnsNotFound
from gateway.services import a_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.address import Address
    from gateway.envelope import Result
    from gateway.smtp.wire import RemoteReply

_UNSENDABLE = re.compile(r"[\r\n\0]")

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
class Envelope:
    """What one transaction carries besides the content."""

    sender: Address
    recipients: Sequence[Address]
    #: Octets of the content; an estimate will do (RFC 1870 section 6).
    size: int
    eight_bit: bool = False
    #: The header holds UTF-8 that its sender declared (RFC 6531).
    international: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a transaction ended for one recipient."""

    result: Result
    status: str
    text: str
    reply: str = ""


@dataclass(slots=True)
class _Tally:
    """The verdicts of one transaction as they come; None is a recipient that nothing has ended yet."""

    verdicts: list[Verdict | None]
    #: MAIL was answered: from here on nobody else may be asked.
    begun: bool = False
    #: Indexes of the recipients that the host took.
    taken: list[int] = field(default_factory=list)
    #: The final dot was sent.
    dotted: bool = False

    def settle(self, verdict: Verdict) -> None:
        """End all recipients that are still open."""
        self.verdicts = [known or verdict for known in self.verdicts]

    def lost(self, error: DialogueError) -> None:
        """End them because the dialogue broke off."""
        text = (
            f"{error}; it may have taken the message, so a copy may arrive twice"
            if self.dotted
            else str(error)
        )
        self.settle(Verdict("deferred", error.status, text, error.reply))


class Dialogue:
    """What was agreed with one host, and how to go on."""

    def __init__(self, helo: str) -> None:
        self._helo = helo
        #: Keyword -> parameters, as EHLO answered.
        self.extensions: dict[str, str] = {}
        self.secure = False
        #: No further transaction is possible.
        self.finished = False
        self._dirty = False

    def begin(self, *, tls: bool) -> Talk[None]:
        """Go from the greeting to where MAIL may come. Raises DialogueError when this host will not do."""
        _expect(220, (yield Hear()), "greeting")
        yield from self._hello()
        if not tls or "STARTTLS" not in self.extensions:
            return
        reply = yield from _ask(b"STARTTLS")
        if reply.code == 220:  # noqa: PLR2004
            yield Secure()
            self.secure = True
            yield from self._hello()

    def transaction(self, envelope: Envelope) -> Talk[list[Verdict]]:
        """Offer one message; gives a verdict for each recipient.

        Raises DialogueError only while the host has taken nothing: another one may be tried then.
        """
        tally = _Tally([self._unsendable(envelope, address) for address in envelope.recipients])
        if None in tally.verdicts:
            try:
                if self._dirty:
                    _expect(250, (yield from _ask(b"RSET")), "RSET")
                self._dirty = True
                yield from self._offer(envelope, tally)
            except DialogueError as error:
                self.finished = True
                if not tally.begun:
                    raise
                tally.lost(error)
        tally.settle(Verdict("deferred", "4.5.0", "the host took the message for others only"))
        return [verdict for verdict in tally.verdicts if verdict]

    def _hello(self) -> Talk[None]:
        self.extensions = {}
        name = self._helo.encode("ascii", "replace")
        reply = yield from _ask(b"EHLO " + name)
        if reply.code // 100 == 5:  # noqa: PLR2004
            _expect(250, (yield from _ask(b"HELO " + name)), "HELO")
            return
        _expect(250, reply, "EHLO")
        for line in reply.lines[1:]:
            keyword, _, parameters = line.strip().partition(" ")
            self.extensions[keyword.upper()] = parameters

    def _offer(self, envelope: Envelope, tally: _Tally) -> Talk[None]:
        """Say MAIL, every RCPT and DATA: in one go where the host allows (RFC 2920)."""
        wanted = [i for i, verdict in enumerate(tally.verdicts) if verdict is None]
        rcpts = [b"RCPT TO:<" + self._wire(envelope.recipients[i]) + b">" for i in wanted]
        ahead = "PIPELINING" in self.extensions
        if ahead:
            yield Say(b"\r\n".join([self._mail(envelope), *rcpts, b"DATA", b""]))
        reply = yield from _ask(b"" if ahead else self._mail(envelope))
        if reply.code == 421:  # noqa: PLR2004
            raise DialogueError("it is closing", reply.status, str(reply))
        tally.begun = True
        if refusal := _refusal(reply, "the sender"):
            tally.settle(refusal)
            if not ahead:
                return
        for index, rcpt in zip(wanted, rcpts, strict=True):
            reply = yield from _ask(b"" if ahead else rcpt)
            if tally.verdicts[index] is None:
                tally.verdicts[index] = _refusal(reply, "the recipient")
                if tally.verdicts[index] is None:
                    tally.taken.append(index)
        if tally.taken or ahead:
            yield from self._content(tally, b"" if ahead else b"DATA")

    def _content(self, tally: _Tally, command: bytes) -> Talk[None]:
        reply = yield from _ask(command)
        if not tally.taken:
            # A host that takes content for nobody cannot be told to stop but by hanging up.
            self.finished = reply.code < 400  # noqa: PLR2004
            return
        if reply.code // 100 != 3:  # noqa: PLR2004
            self.finished = reply.code < 400  # noqa: PLR2004
            tally.settle(_verdict(reply, "the message", success=3))
            return
        early = yield Pour()
        if early:
            self.finished = True
            tally.settle(_verdict(early, "the message in its midst", success=0))
            return
        tally.dotted = True
        reply = yield Hear(final=True)
        self._dirty = False
        tally.settle(_verdict(reply, "the message", success=2))

    def _mail(self, envelope: Envelope) -> bytes:
        line = b"MAIL FROM:<" + self._wire(envelope.sender) + b">"
        if "SIZE" in self.extensions:
            line += b" SIZE=%d" % envelope.size
        if envelope.eight_bit and "8BITMIME" in self.extensions:
            line += b" BODY=8BITMIME"
        if "SMTPUTF8" in self.extensions and self._is_international(envelope):
            line += b" SMTPUTF8"
        return line

    def _is_international(self, envelope: Envelope) -> bool:
        addresses = (envelope.sender, *envelope.recipients)
        return envelope.international or not all(address.is_ascii for address in addresses)

    def _wire(self, address: Address) -> bytes:
        """Write an address as this host takes it."""
        if address.is_ascii or "SMTPUTF8" in self.extensions:
            return address.quoted().encode("utf-8", "surrogateescape")
        return _in_ascii(address).encode("ascii")

    def _unsendable(self, envelope: Envelope, recipient: Address) -> Verdict | None:
        """Say what forbids this recipient before a word is said."""
        for address, status in ((envelope.sender, "5.1.7"), (recipient, "5.1.3")):
            if _UNSENDABLE.search(address):
                return Verdict("failed", status, "the address holds a control character")
        utf8 = "SMTPUTF8" in self.extensions
        addresses = (envelope.sender, recipient)
        if (envelope.international and not utf8) or not all(
            _can_go(address, utf8=utf8) for address in addresses
        ):
            return Verdict("failed", "5.6.7", "the host takes no international addresses (SMTPUTF8)")
        limit = self.extensions.get("SIZE", "")
        if limit.isdecimal() and 0 < int(limit[:20]) < envelope.size:
            return Verdict(
                "failed", "5.3.4", f"the message is larger than the {limit} bytes that the host takes"
            )
        return None


def _ask(line: bytes) -> Talk[RemoteReply]:
    """Say a command and hear the reply; b"" is a command that was sent ahead."""
    if line:
        yield Say(line + b"\r\n")
    reply: RemoteReply = yield Hear()
    return reply


def _expect(code: int, reply: RemoteReply, command: str) -> None:
    if reply.code != code:
        status = reply.status if reply.status.startswith("4") else "4.5.0"
        raise DialogueError(f"it refused us at {command}", status, str(reply))


def _refusal(reply: RemoteReply, what: str) -> Verdict | None:
    return _verdict(reply, what, success=2) if reply.code >= 400 else None  # noqa: PLR2004


def _verdict(reply: RemoteReply, what: str, *, success: Literal[0, 2, 3]) -> Verdict:
    """Say what a reply makes of a message or recipient (table at the head of this file)."""
    if reply.code // 100 == success:
        return Verdict("delivered", reply.status, "the host took the message", str(reply))
    if reply.code >= 500:  # noqa: PLR2004
        return Verdict("failed", reply.status, f"the host refused {what}", str(reply))
    if reply.code >= 400:  # noqa: PLR2004
        return Verdict("deferred", reply.status, f"the host refused {what} for now", str(reply))
    return Verdict("deferred", "4.5.0", f"the host gave an answer out of place to {what}", str(reply))


def _can_go(address: Address, *, utf8: bool) -> bool:
    if address.is_ascii:
        return True
    try:
        address.encode()
    except UnicodeEncodeError:
        return False
    return utf8 or _in_ascii(address).isascii()


def _in_ascii(address: Address) -> str:
    """Write an address with its domain in A-labels (RFC 5890)."""
    local, at, domain = address.quoted().rpartition("@")
    try:
        return f"{local}{at}{a_label(domain)}"
    except DnsNotFound:
        return str(address)
