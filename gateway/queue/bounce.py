"""Who gets a bounce, and the plain one that is sent when no plugin writes a better one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.address import Address
from gateway.envelope import Birth
from gateway.message import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.envelope import Entry, Failure

#: The sender of double bounces; what cannot be delivered from it is dropped (qmail spec 5.5).
DOUBLE = Address("#@[]")
_VERP = "-@[]"
_WORDS = "Your message could not be delivered to these recipients; its header follows.\n"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def bounce_envelope(sender: Address, postmaster: str) -> tuple[Address, Address] | None:
    """Give sender and recipient of the bounce of a message from `sender`.

    The bounce of a bounce goes to the postmaster; None for a double bounce: there is never a third.
    """
    if sender == DOUBLE:
        return None
    told = Address(sender.removesuffix(_VERP))
    return (Address(""), told) if told else (DOUBLE, Address(postmaster))


def plain_bounce(entry: Entry, failures: Sequence[Failure], hostname: str, postmaster: str) -> Birth | None:
    """Write the least that a sender must know, with the header of the original behind it."""
    envelope = bounce_envelope(entry.sender, postmaster)
    if envelope is None:
        return None
    sender, recipient = envelope
    lines = [f"{failure.recipient.original}: {failure.text}".replace("\n", " ") for failure in failures]
    text = "\n".join(["", _WORDS, *lines, "", ""]).encode("utf-8", "surrogateescape")
    message = Message(b"", text + entry.message.header)
    message.append("From", f"MAILER-DAEMON@{hostname}")
    message.append("To", Address(_CONTROLS.sub("_", recipient)).quoted())
    message.append("Subject", "failure notice")
    return Birth(sender, (recipient,), message, "bounce")
