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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gateway.errors import DialogueError, TlsFailed
from gateway.smtp.login import log_in
from gateway.smtp.offer import Offer
from gateway.smtp.talk import Hear, Pour, Say, Secure, Verdict, ask, expect

if TYPE_CHECKING:
    from gateway.smtp.talk import Envelope, Login, Talk
    from gateway.smtp.wire import RemoteReply

#: Whether a dialogue goes under TLS: where it is offered, or else not at all, or from the first byte on.
Security = Literal["none", "may", "required", "implicit"]


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
        #: We have logged in.
        self._known = False
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
            self._known = True

    def transaction(self, envelope: Envelope) -> Talk[list[Verdict]]:
        """Offer one message; gives a verdict for each recipient.

        Raises DialogueError only while the host has taken nothing: another one may be tried then.
        """
        offer = Offer(envelope, self.extensions, self.secure, self._known)
        if envelope.require_tls and not offer.keeps_tls:
            raise DialogueError("it does not promise to keep TLS (REQUIRETLS)", "5.7.30")
        tally = _Tally([offer.unsendable(address) for address in envelope.recipients])
        if None in tally.verdicts:
            try:
                if self._dirty:
                    expect(250, (yield from ask(b"RSET")), "RSET")
                self._dirty = True
                yield from self._envelope(offer, tally)
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

    def _envelope(self, offer: Offer, tally: _Tally) -> Talk[None]:
        """Say MAIL, every RCPT and DATA: in one go where the host allows (RFC 2920)."""
        wanted = [i for i, verdict in enumerate(tally.verdicts) if verdict is None]
        rcpts = [offer.rcpt(i) for i in wanted]
        ahead = "PIPELINING" in self.extensions
        if ahead:
            yield Say(b"\r\n".join([offer.mail(), *rcpts, b"DATA", b""]))
        reply = yield from ask(b"" if ahead else offer.mail())
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
