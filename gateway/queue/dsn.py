"""Who is told what of a delivery, and which wishes travel on (RFC 3461). Pure: no IO."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from gateway.queue.bounce import DOUBLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.address import Address
    from gateway.envelope import Birth, Entry, Outcome, Recipient

#: What the next host has to know of a message, whoever sends it on.
_OF_THE_MESSAGE = ("BODY", "SMTPUTF8", "REQUIRETLS")
_WISHES = ("RET", "ENVID")
_WARNED = "warned"


def wants(entry: Entry, recipient: Recipient, wish: str) -> bool:
    """Whether the sender wants to hear this of a recipient: unless told otherwise, of a failure alone."""
    if wish != "FAILURE" and entry.sender in ("", DOUBLE):
        return False
    return wish in recipient.params.get("NOTIFY", "FAILURE").upper().split(",")


def wants_warning(entry: Entry, recipient: Recipient) -> bool:
    """Whether the sender wants to hear of a delay, and has not heard of it."""
    return wants(entry, recipient, "DELAY") and _WARNED not in recipient.params


def warned(recipient: Recipient) -> Recipient:
    """Note that a delay was reported."""
    return replace(recipient, params={**recipient.params, _WARNED: ""})


def success(sender: Address, outcome: Outcome) -> Literal["delivered", "relayed", "expanded", ""]:
    """Say what a delivery is called in a report; "" when who gets the mail next is to tell of it."""
    forwards = [birth for birth in outcome.births if birth.sender == sender]
    if forwards:
        return "expanded" if _many(forwards) else ""
    if outcome.handed == "passed":
        return ""
    return outcome.handed or "delivered"


def inherited(
    entry: Entry, sender: Address, recipient: Recipient, births: tuple[Birth, ...], birth: Birth
) -> tuple[dict[str, str], dict[str, str]]:
    """Give the parameters of MAIL and RCPT for a message that a delivery gave birth to.

    With another sender it is a list's, and a message of its own. A single forward takes all wishes along; of
    several, this host tells of the success, and they of failures (RFC 3461 section 5.2.7).
    """
    params = _some(entry.params, *_OF_THE_MESSAGE)
    if birth.sender != sender:
        return params, {}
    params |= _some(entry.params, *_WISHES)
    wishes = _some(recipient.params, "NOTIFY", "ORCPT")
    if "NOTIFY" in wishes and _many([one for one in births if one.sender == sender]):
        left = [wish for wish in wishes["NOTIFY"].upper().split(",") if wish != "SUCCESS"]
        wishes["NOTIFY"] = ",".join(left) or "NEVER"
    return params, wishes


def _many(births: list[Birth]) -> bool:
    return sum(len(birth.recipients) for birth in births) > 1


def _some(params: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: params[name] for name in names if name in params}
