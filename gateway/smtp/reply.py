"""Replies of an SMTP server: what they look like, and which one a decision becomes."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from gateway.decision import Decision, Defer, Disconnect, Reject

#: RFC 5321 section 4.5.3.1.5: a reply line has at most 512 octets; code, status and CRLF are part of it.
_WIDTH = 480
#: What a policy may say at most; the rest is cut.
_LONGEST = 2000
_UNPRINTABLE = re.compile(r"[^ -~\n]")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `status` is the enhanced one (RFC 3463), "" where RFC 2034 wants none."""

    code: int
    status: str
    text: str

    @property
    def refused(self) -> bool:
        """Whether this says no, for now or for good."""
        return self.code >= 400  # noqa: PLR2004

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.status, self.text)))

    def wire(self, *, utf8: bool = False) -> bytes:
        """Write the reply with its CRLFs, the status on every line; ASCII unless the client has SMTPUTF8."""
        clean = _clean(self.text[:_LONGEST], utf8=utf8)
        *more, last = [part for line in clean.split("\n") for part in _folded(line)]
        status = f"{self.status} " if self.status else ""
        head = "".join(f"{self.code}-{status}{line}\r\n" for line in more)
        return f"{head}{self.code} {status}{last}\r\n".encode()


def _clean(text: str, *, utf8: bool) -> str:
    if text.isascii() and text.isprintable():
        return text
    return (_CONTROL if utf8 else _UNPRINTABLE).sub("?", text)


def _folded(text: str) -> list[str]:
    """Cut a line that is too long for the wire; octets count, and a character has up to four."""
    width = _WIDTH if text.isascii() else _WIDTH // 4
    return [text] if len(text) <= width else textwrap.wrap(text, width) or [""]


# The status, or else its class, gives the code.
_DOOR = {"5": 554, "4": 421}
_ENVELOPE = {"5": 550, "5.3.4": 552, "4": 450, "4.3.0": 451, "4.3.1": 452}
_ADDRESS = {**_ENVELOPE, "5.7.1": 553}
_MESSAGE = {"5": 554, "5.3.4": 552, "4": 451, "4.3.1": 452}
#: What a Reject (5) and a Defer (4) become at each stage.
_CODES = {
    "connect": _DOOR,
    "helo": _DOOR,
    "authenticate": {"5": 535, "4": 454},
    "mail": _ADDRESS,
    "rcpt": _ADDRESS,
    "data": _ENVELOPE,
    "message": _MESSAGE,
}


def answer(decision: Decision | None, stage: str, accepted: Reply) -> Reply:
    """Give the reply to a decision of a stage; `accepted` is what a yes is called there."""
    if not isinstance(decision, Reject | Defer | Disconnect):
        return accepted
    codes = _DOOR if isinstance(decision, Disconnect) else _CODES[stage]
    code = codes.get(decision.status) or codes[decision.status[0]]
    return Reply(code, decision.status, decision.text)


def closes(decision: Decision | None, stage: str) -> bool:
    """Whether the connection ends behind the reply."""
    at_the_door = _CODES[stage] is _DOOR and isinstance(decision, Reject | Defer)
    return at_the_door or isinstance(decision, Disconnect)


# What the server says by itself, in the order of a session.
OK = Reply(250, "2.0.0", "ok")
RESET = Reply(250, "2.0.0", "flushed")
SENDER_OK = Reply(250, "2.1.0", "sender ok")
RECIPIENT_OK = Reply(250, "2.1.5", "recipient ok")
GO_AHEAD = Reply(354, "", "go ahead, end with <CRLF>.<CRLF>")
AUTHENTICATED = Reply(235, "2.7.0", "authenticated")
BEGIN_TLS = Reply(220, "2.0.0", "begin TLS")
GOODBYE = Reply(221, "2.0.0", "goodbye")
HELP = Reply(214, "2.0.0", "HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT")
CANNOT_VERIFY = Reply(252, "2.0.0", "cannot verify, but will take mail for it")

SHUTTING_DOWN = Reply(421, "4.3.2", "shutting down, try again later")
NOT_READY = Reply(421, "4.3.0", "temporary failure, try again later")
IDLE = Reply(421, "4.4.2", "waited too long for the client")
SESSION_TOO_LONG = Reply(421, "4.4.2", "the session lasts too long")
LOCKED = Reply(421, "4.7.0", "this login was locked")
TOO_SLOW = Reply(421, "4.4.2", "the content comes too slowly")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "too many commands in one session")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "too many errors")
INTERNAL_ERROR = Reply(451, "4.3.0", "temporary failure, try again later")
DISK_FULL = Reply(452, "4.3.1", "no room for the message, try again later")
NO_MEMORY = Reply(452, "4.3.1", "no room for the message now, try again later")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "too many recipients")

UNKNOWN_COMMAND = Reply(500, "5.5.1", "command not recognised")
LINE_TOO_LONG = Reply(500, "5.5.2", "line too long")
MALFORMED_LINE = Reply(500, "5.5.2", "a line ends with CRLF and holds no other CR, LF or NUL")
BAD_RESPONSE = Reply(501, "5.5.2", "not a response of this mechanism")
RESPONSE_TOO_LONG = Reply(500, "5.5.6", "the response is too long")
AUTH_CANCELLED = Reply(501, "5.7.0", "authentication cancelled")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "mechanism not offered")
AUTH_TWICE = Reply(503, "5.5.1", "already authenticated")
TLS_TWICE = Reply(503, "5.5.1", "TLS is up already")
NOT_ALONE = Reply(554, "5.5.1", "nothing may follow STARTTLS before its reply")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "command not implemented")
AUTH_NEEDS_TLS = Reply(538, "5.7.11", "a password needs TLS: say STARTTLS first")
NEEDS_TLS = Reply(530, "5.7.0", "say STARTTLS first")
NEEDS_AUTH = Reply(530, "5.7.0", "authenticate first")
NO_HELO = Reply(503, "5.5.1", "say HELO or EHLO first")
NO_MAIL = Reply(503, "5.5.1", "say MAIL first")
NO_RECIPIENT = Reply(503, "5.5.1", "no valid recipients")
CHUNKS_BEGUN = Reply(503, "5.5.1", "the content has begun by BDAT")
NESTED_MAIL = Reply(503, "5.5.1", "one MAIL at a time")
NULL_RECIPIENT = Reply(501, "5.1.3", "a recipient needs an address")
BAD_HELO = Reply(501, "5.5.4", "the name is not printable ASCII of at most 255 characters")
NEEDS_ARGUMENT = Reply(501, "5.5.4", "an argument is missing")
NO_ARGUMENT = Reply(501, "5.5.4", "no argument is allowed")
BAD_CHUNK = Reply(501, "5.5.4", "BDAT needs a length, and LAST or nothing behind it")
BAD_PARAMETER = Reply(501, "5.5.4", "a parameter has a wrong value")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "parameter not recognised")
NOT_UTF8 = Reply(553, "5.6.7", "the address is not UTF-8")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "the address needs SMTPUTF8")
TOO_BIG = Reply(552, "5.3.4", "the message is too big")
MALFORMED_MESSAGE = Reply(550, "5.5.2", "bare CR, bare LF or NUL in the message")
TOO_MANY_HOPS = Reply(554, "5.4.6", "too many hops, this message is looping")
