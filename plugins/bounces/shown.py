"""What both formats of a bounce share: how addresses are shown, and text as bytes. Pure: no IO."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway import Address

if TYPE_CHECKING:
    from gateway import Failure, Notice

CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def shown(one: Failure | Notice) -> str:
    """Give the address under which the sender knows a recipient.

    qmail cannot undo what a whole address in virtual_domains did, and shows the result (qmail spec 5.5).
    """
    recipient = one.recipient
    key = recipient.rule.rpartition(" -> ")[0].rpartition(": ")[2]
    if recipient.claimed == "virtual_domains" and "@" in key:
        return recipient.address
    if "@" in recipient.original:
        return recipient.original
    return f"{recipient.original}@{recipient.address.domain}"


def in_header(address: str) -> str:
    """Write an address into a header field, which it can neither end nor leave."""
    return Address(CONTROLS.sub("_", address)).quoted()


def encode(text: str) -> bytes:
    """Give the bytes of a text, also those that were no UTF-8."""
    return text.encode("utf-8", "surrogateescape")
