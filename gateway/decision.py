"""What a stage can say about mail. Values only: the edge turns them into SMTP replies or milter answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from gateway.envelope import Recipient

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Accept:
    """Yes; ends this stage, not the ones after it.

    At `relay`, `recipient` takes the place of the one that was asked about (qmail's RELAYCLIENT with a
    value). `rule` says what decided, for `mailward address`: "tcp.smtp:3".
    """

    recipient: Recipient | None = field(default=None, kw_only=True)
    rule: str = field(default="", kw_only=True, compare=False)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An enhanced status code (RFC 3463) and the text that the client may see.

    `reason` is a short word for the event ("relay", "unknown_recipient"), `rule` says what decided, for
    `mailward address` ("tcp.smtp:3"); clients never see either.
    Raises ValueError when the status is not of this decision's class.
    """

    status: str
    text: str
    reason: str = field(default="", kw_only=True)
    rule: str = field(default="", kw_only=True, compare=False)

    CLASSES: ClassVar[str] = "45"

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[{self.CLASSES}]\.\d{{1,3}}\.\d{{1,3}}", self.status):
            msg = f"{type(self).__name__} cannot carry the status {self.status!r}"
            raise ValueError(msg)
        # A CR or LF here would be a second reply on the wire (RFC 5321 section 4.2).
        object.__setattr__(self, "text", _CONTROLS.sub(" ", self.text).strip())


@dataclass(frozen=True, slots=True)
class Reject(_Refusal):
    """No, and do not try again: `Reject("5.7.1", "relaying denied")`."""

    CLASSES: ClassVar[str] = "5"


@dataclass(frozen=True, slots=True)
class Defer(_Refusal):
    """Not now, try again: `Defer("4.7.1", "try again tomorrow")`."""

    CLASSES: ClassVar[str] = "4"


@dataclass(frozen=True, slots=True)
class Disconnect(_Refusal):
    """No, and the connection ends: status 4.7.0 or 5.7.0."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Say yes to the client and drop that sender, recipient or message; an event tells it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Take it into the queue, and keep it there until a person releases it."""

    reason: str


Decision = Accept | Reject | Defer | Discard | Hold | Disconnect
