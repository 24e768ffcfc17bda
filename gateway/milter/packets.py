"""What the two sides of a milter connection say: one frozen value a packet. Texts are bytes, as on the wire.

The protocol is version 6 of Sendmail's (libmilter); the MTA sends commands, the filter answers. Pure: no IO.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

#: The newest version there is; filters older than 2 do not exist any more.
VERSION, OLDEST_VERSION = 6, 2


class Actions(IntFlag):
    """What a filter may do to a message."""

    ADD_HEADERS = 0x01
    CHANGE_BODY = 0x02
    ADD_RECIPIENTS = 0x04
    DELETE_RECIPIENTS = 0x08
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHANGE_SENDER = 0x40
    ADD_RECIPIENTS_WITH_ARGUMENTS = 0x80
    CHOOSE_MACROS = 0x100


class Steps(IntFlag):
    """Bits of the dialogue. NO: the step is left out; NR: the filter does not answer it."""

    NO_CONNECT = 0x01
    NO_HELO = 0x02
    NO_MAIL = 0x04
    NO_RCPT = 0x08
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_EOH = 0x40
    NR_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    #: The filter may answer `Skip`.
    SKIP = 0x400
    #: The MTA shows recipients that it has refused itself.
    REFUSED_RECIPIENTS = 0x800
    NR_CONNECT = 0x1000
    NR_HELO = 0x2000
    NR_MAIL = 0x4000
    NR_RCPT = 0x8000
    NR_DATA = 0x10000
    NR_UNKNOWN = 0x20000
    NR_EOH = 0x40000
    NR_BODY = 0x80000
    #: Values of header fields keep, and bring, the space behind the colon.
    LEADING_SPACE = 0x100000


ALL_ACTIONS = Actions(0x1FF)
ALL_STEPS = Steps(0x1FFFFF)


class Packet:
    """Base of all packets."""

    __slots__ = ()
    CODE: ClassVar[bytes]


# Both ways


@dataclass(frozen=True, slots=True)
class Negotiate(Packet):
    """What a side can do, or has chosen; a filter may name the macros that it wants, by stage."""

    CODE: ClassVar = b"O"
    version: int
    actions: int
    steps: int
    #: Stage number (see wire.MACRO_STAGES) -> names.
    macros: tuple[tuple[int, tuple[bytes, ...]], ...] = ()


# Commands: from the MTA


@dataclass(frozen=True, slots=True)
class Macros(Packet):
    """Facts that belong to the command that follows; names without braces."""

    CODE: ClassVar = b"D"
    command: bytes
    values: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Connect(Packet):
    """A client has connected to the MTA. `family` is one of `4 6 L U`; with U there is no address."""

    CODE: ClassVar = b"C"
    hostname: bytes
    family: bytes = b"U"
    port: int = 0
    address: bytes = b""


@dataclass(frozen=True, slots=True)
class Helo(Packet):
    """HELO or EHLO was given."""

    CODE: ClassVar = b"H"
    name: bytes


@dataclass(frozen=True, slots=True)
class Mail(Packet):
    """MAIL FROM was given: the address in `<>`, and ESMTP parameters as they came."""

    CODE: ClassVar = b"M"
    address: bytes
    arguments: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Rcpt(Packet):
    """RCPT TO was given."""

    CODE: ClassVar = b"R"
    address: bytes
    arguments: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Data(Packet):
    """DATA was given."""

    CODE: ClassVar = b"T"


@dataclass(frozen=True, slots=True)
class Header(Packet):
    """One header field; folds are LF and white space."""

    CODE: ClassVar = b"L"
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class EndOfHeaders(Packet):
    """The header is over, also when there was none."""

    CODE: ClassVar = b"N"


@dataclass(frozen=True, slots=True)
class Body(Packet):
    """A piece of the body, with CRLF line ends; pieces end anywhere."""

    CODE: ClassVar = b"B"
    content: bytes


@dataclass(frozen=True, slots=True)
class EndOfMessage(Packet):
    """The message is whole. Some MTAs put the last piece of the body in here."""

    CODE: ClassVar = b"E"
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Abort(Packet):
    """The message ended without an end; no answer."""

    CODE: ClassVar = b"A"


@dataclass(frozen=True, slots=True)
class Quit(Packet):
    """The connection is over; no answer."""

    CODE: ClassVar = b"Q"


@dataclass(frozen=True, slots=True)
class QuitForNext(Packet):
    """The session is over, and the connection is used for another; no answer."""

    CODE: ClassVar = b"K"


@dataclass(frozen=True, slots=True)
class Unknown(Packet):
    """The client gave a command that is none."""

    CODE: ClassVar = b"U"
    line: bytes


# Verdicts: from the filter


@dataclass(frozen=True, slots=True)
class Continue(Packet):
    """Go on."""

    CODE: ClassVar = b"c"


@dataclass(frozen=True, slots=True)
class Accept(Packet):
    """Take it; the filter wants to see no more of this message (of the session, at connect and helo)."""

    CODE: ClassVar = b"a"


@dataclass(frozen=True, slots=True)
class Reject(Packet):
    """Refuse it for good."""

    CODE: ClassVar = b"r"


@dataclass(frozen=True, slots=True)
class TempFail(Packet):
    """Refuse it for now."""

    CODE: ClassVar = b"t"


@dataclass(frozen=True, slots=True)
class ReplyCode(Packet):
    """Refuse it with this reply: `550 5.7.1 no`, lines joined by CRLF, `%` as itself."""

    CODE: ClassVar = b"y"
    text: bytes


@dataclass(frozen=True, slots=True)
class Discard(Packet):
    """Say yes, and drop the message."""

    CODE: ClassVar = b"d"


@dataclass(frozen=True, slots=True)
class Shutdown(Packet):
    """Answer 421 and close the client's connection."""

    CODE: ClassVar = b"4"


@dataclass(frozen=True, slots=True)
class ConnectionFailed(Packet):
    """Obsolete; nobody may say it any more."""

    CODE: ClassVar = b"f"


@dataclass(frozen=True, slots=True)
class Skip(Packet):
    """Show no more packets of this kind."""

    CODE: ClassVar = b"s"


@dataclass(frozen=True, slots=True)
class Progress(Packet):
    """Still at work: wait on."""

    CODE: ClassVar = b"p"


# Edits: from the filter, at the end of a message


@dataclass(frozen=True, slots=True)
class AddHeader(Packet):
    """Put a field behind all others."""

    CODE: ClassVar = b"h"
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class InsertHeader(Packet):
    """Put a field at a place among all fields as delivered; 0 is the top, above the MTA's own Received."""

    CODE: ClassVar = b"i"
    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeHeader(Packet):
    """Change the n-th field of this name, from 1 as the filter saw them; an empty value deletes it."""

    CODE: ClassVar = b"m"
    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ReplaceBody(Packet):
    """A piece of the new body; all pieces together replace the old one."""

    CODE: ClassVar = b"b"
    content: bytes


@dataclass(frozen=True, slots=True)
class AddRecipient(Packet):
    """Send it to one more."""

    CODE: ClassVar = b"+"
    address: bytes


@dataclass(frozen=True, slots=True)
class AddRecipientWithArguments(Packet):
    """Send it to one more, with ESMTP parameters."""

    CODE: ClassVar = b"2"
    address: bytes
    arguments: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteRecipient(Packet):
    """Do not send it to this one."""

    CODE: ClassVar = b"-"
    address: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender(Packet):
    """Change the envelope sender."""

    CODE: ClassVar = b"e"
    address: bytes
    arguments: bytes = b""


@dataclass(frozen=True, slots=True)
class Quarantine(Packet):
    """Hold it, for this reason; a verdict follows."""

    CODE: ClassVar = b"q"
    reason: bytes


Event = Connect | Helo | Mail | Rcpt | Data | Header | EndOfHeaders | Body | EndOfMessage | Unknown
Command = Negotiate | Macros | Event | Abort | Quit | QuitForNext
Refusal = Reject | TempFail | ReplyCode | Shutdown
Verdict = Continue | Accept | Discard | Refusal
Edit = (
    AddHeader
    | InsertHeader
    | ChangeHeader
    | ReplaceBody
    | AddRecipient
    | AddRecipientWithArguments
    | DeleteRecipient
    | ChangeSender
    | Quarantine
)
Answer = Negotiate | Verdict | ConnectionFailed | Skip | Progress | Edit
