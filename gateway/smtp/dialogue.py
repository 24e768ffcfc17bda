"""The client's side of an SMTP or LMTP connection: what to say, and what an answer means. Pure: no IO.

The methods of a Dialogue are talks (`talk.py`). The states, and what each answer makes (RFC 5321, RFC 2033):

  state      2xx          3xx         4xx              5xx              lost, silent, no SMTP
  greeting   (220) go on  elsewhere   elsewhere        elsewhere        elsewhere
  EHLO       (250) go on  elsewhere   elsewhere        HELO instead     elsewhere
  HELO       (250) go on  elsewhere   elsewhere        elsewhere        elsewhere
  STARTTLS   (220) TLS    in plain    in plain         in plain         elsewhere
             where TLS is required, "in plain" is elsewhere
  AUTH       (235) go on  elsewhere   elsewhere        elsewhere        elsewhere
  MAIL       go on        go on       deferred         failed           elsewhere
  RCPT       taken        taken       that one def.    that one failed  deferred
  DATA       deferred     content     deferred         failed           deferred
  final dot  delivered    deferred    deferred         failed           deferred, perhaps a duplicate
             by LMTP, a reply for each recipient that was taken

"Elsewhere" is a DialogueError: nothing was taken, so the next address may be tried; 421 to MAIL is one too.
The first line's code is the reply's; where lines differ, it counts for no refusal of ours to go on: then the
host is left, and behind the final dot mail waits. qmail (spec 7.5) sends content after any answer below 400,
and fails for good at one without digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gateway.errors import DialogueError, DnsNotFound, TlsFailed
from gateway.services import a_label
from gateway.smtp.login import log_in
from gateway.smtp.talk import Hear, Pour, Say, Secure, Verdict, ask, expect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.address import Address
    from gateway.smtp.talk import Envelope, Login, Talk
    from gateway.smtp.wire import RemoteReply

#: Whether a dialogue goes under TLS: where it is offered, or else not at all, or from the first byte on.
Security = Literal["none", "may", "required", "implicit"]

_UNSENDABLE = re.compile(r"[\r\n\0]")
#: The value of a parameter that may be passed on (RFC 5321 section 4.1.2, esmtp-value; RFC 6533 section 3).
_VALUE = re.compile(r"[!-<>-~][!-~]{0,499}|(?i:utf-8);[^\x00-\x20\x7f-\x9f\ud800-\udfff]{1,494}")


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

    def __init__(self, helo: str, *, lmtp: bool = False) -> None:
        self._helo = helo.encode("ascii", "replace")
        self._lmtp = lmtp
        #: Keyword -> parameters, as EHLO answered.
        self.extensions: dict[str, str] = {}
        self.secure = False
        #: No further transaction is possible.
        self.finished = False
        self._dirty = False

    def begin(self, tls: Security, login: Login | None = None) -> Talk[None]:
        """Go from the greeting to where MAIL may come. Raises DialogueError when this host will not do."""
        if tls == "implicit":
            yield Secure()
            self.secure = True
        expect(220, (yield Hear()), "greeting")
        yield from self._hello()
        if tls in ("may", "required"):
            yield from self._starttls(required=tls == "required")
        if login:
            if not self.secure:
                raise TlsFailed("no password is sent without TLS", "4.7.4", kind="starttls-not-supported")
            yield from log_in(self.extensions.get("AUTH", ""), login)

    def transaction(self, envelope: Envelope) -> Talk[list[Verdict]]:
        """Offer one message; gives a verdict for each recipient.

        Raises DialogueError only while the host has taken nothing: another one may be tried then.
        """
        if envelope.require_tls and not self._keeps_tls:
            raise DialogueError("it does not promise to keep TLS (REQUIRETLS)", "5.7.30")
        tally = _Tally([self._unsendable(envelope, address) for address in envelope.recipients])
        if None in tally.verdicts:
            try:
                if self._dirty:
                    expect(250, (yield from ask(b"RSET")), "RSET")
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
        hello = b"LHLO" if self._lmtp else b"EHLO"
        reply = yield from ask(hello + b" " + self._helo)
        if reply.code // 100 == 5 and not self._lmtp:  # noqa: PLR2004
            expect(250, (yield from ask(b"HELO " + self._helo)), "HELO")
            return
        expect(250, reply, hello.decode())
        for line in reply.lines[1:]:
            keyword, _, parameters = line.strip().partition(" ")
            self.extensions[keyword.upper()] = parameters

    def _starttls(self, *, required: bool) -> Talk[None]:
        reply = (yield from ask(b"STARTTLS")) if "STARTTLS" in self.extensions else None
        if reply and reply.code == 220 and not reply.mixed:  # noqa: PLR2004
            yield Secure()
            self.secure = True
            # What was said in plain counts no more (RFC 3207 section 4.2).
            yield from self._hello()
        elif required:
            text = str(reply) if reply else ""
            raise TlsFailed("it offers no TLS", "4.7.4", text, kind="starttls-not-supported")

    def _offer(self, envelope: Envelope, tally: _Tally) -> Talk[None]:
        """Say MAIL, every RCPT and DATA: in one go where the host allows (RFC 2920)."""
        wanted = [i for i, verdict in enumerate(tally.verdicts) if verdict is None]
        rcpts = [self._rcpt(envelope, i) for i in wanted]
        ahead = "PIPELINING" in self.extensions
        if ahead:
            yield Say(b"\r\n".join([self._mail(envelope), *rcpts, b"DATA", b""]))
        reply = yield from ask(b"" if ahead else self._mail(envelope))
        if reply.code == 421:  # noqa: PLR2004
            raise DialogueError("it is closing", reply.status, str(reply))
        tally.begun = True
        if refusal := _refusal(reply, "the sender"):
            tally.settle(refusal)
            if not ahead:
                return
        for index, rcpt in zip(wanted, rcpts, strict=True):
            reply = yield from ask(b"" if ahead else rcpt)
            if tally.verdicts[index] is None:
                tally.verdicts[index] = _refusal(reply, "the recipient")
                if tally.verdicts[index] is None:
                    tally.taken.append(index)
        if tally.taken or ahead:
            yield from self._content(tally, b"" if ahead else b"DATA")

    def _content(self, tally: _Tally, command: bytes) -> Talk[None]:
        reply = yield from ask(command)
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
        for index in tally.taken if self._lmtp else tally.taken[:1]:
            reply = yield Hear(final=True)
            verdict = _final(reply)
            if self._lmtp:
                tally.verdicts[index] = verdict
            else:
                tally.settle(verdict)
        self._dirty = False

    @property
    def _keeps_tls(self) -> bool:
        return self.secure and "REQUIRETLS" in self.extensions

    def _mail(self, envelope: Envelope) -> bytes:
        line = b"MAIL FROM:<" + self._wire(envelope.sender) + b">"
        if "SIZE" in self.extensions:
            line += b" SIZE=%d" % envelope.size
        if envelope.eight_bit and "8BITMIME" in self.extensions:
            line += b" BODY=8BITMIME"
        if self._says_utf8(envelope):
            line += b" SMTPUTF8"
        # Also of a bounce, which does not depend on it (RFC 8689 section 5).
        if self._keeps_tls and (envelope.require_tls or "REQUIRETLS" in envelope.params):
            line += b" REQUIRETLS"
        return line + self._dsn(envelope.params, "RET", "ENVID")

    def _rcpt(self, envelope: Envelope, index: int) -> bytes:
        line = b"RCPT TO:<" + self._wire(envelope.recipients[index]) + b">"
        if not envelope.rcpt_params:
            return line
        params = dict(envelope.rcpt_params[index])
        original = params.get("ORCPT", "")
        if not original.isascii() and not self._says_utf8(envelope):
            params["ORCPT"] = _without_utf8(original)
        return line + self._dsn(params, "NOTIFY", "ORCPT")

    def _dsn(self, params: Mapping[str, str], *names: str) -> bytes:
        """Pass on what the sender wants to be told, as it was given (RFC 3461 section 5.2)."""
        if "DSN" not in self.extensions:
            return b""
        given = ((name, params.get(name, "")) for name in names)
        return b"".join(f" {name}={value}".encode() for name, value in given if _VALUE.fullmatch(value))

    def _says_utf8(self, envelope: Envelope) -> bool:
        """Whether MAIL has SMTPUTF8: it is offered, and needed."""
        addresses = (envelope.sender, *envelope.recipients)
        needed = envelope.international or not all(address.is_ascii for address in addresses)
        return needed and "SMTPUTF8" in self.extensions

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


def _final(reply: RemoteReply) -> Verdict:
    if reply.mixed:
        return Verdict("deferred", "4.5.0", "the host said two things at once", str(reply))
    return _verdict(reply, "the message", success=2)


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


def _without_utf8(original: str) -> str:
    """Write an ORCPT in ASCII (RFC 6533 section 3, utf-8-addr-xtext); "" for what is none of type utf-8."""
    coded = re.sub(r"[^\x00-\x7f]", lambda hit: f"\\x{{{ord(hit[0]):X}}}", original)
    return coded if original.lower().startswith("utf-8;") else ""


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
