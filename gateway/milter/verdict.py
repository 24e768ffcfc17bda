"""What came of showing a message to a filter, and what becomes of the message. Pure: no IO."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gateway.decision import Accept, Decision, Defer, Discard, Disconnect, Reject
from gateway.envelope import Recipient
from gateway.errors import AddressError, MilterError
from gateway.message import Message
from gateway.milter import packets
from gateway.milter.edits import Fields
from gateway.milter.facts import address_of, params_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.address import Address
    from gateway.milter.packets import Edit, Packet, Refusal

REFUSALS = (packets.Reject, packets.TempFail, packets.ReplyCode, packets.Shutdown)
_LINE = re.compile(rb"([45]\d\d)(?:([ -])(?:(\d\.\d{1,3}\.\d{1,3})(?: |$))?([^\r\n\0]*))?")


@dataclass(frozen=True, slots=True)
class Mail:
    """A message with all that a filter is shown of it; filters' edits make a new one."""

    connect: packets.Connect
    helo: bytes
    sender: Address
    recipients: tuple[Recipient, ...]
    message: Message
    params: Mapping[str, str] = field(default_factory=dict)
    #: Index of the gateway's own Received among the header fields, which filters do not see.
    hidden: int | None = None


@dataclass(slots=True)
class Verdict:
    """What came of showing a message to a filter."""

    answer: Packet = field(default_factory=packets.Continue)
    #: The recipients that it refused.
    refused: dict[Address, Refusal] = field(default_factory=dict)
    #: Why to hold the message, "" when it is not to be held.
    held: str = ""
    edits: list[Edit] = field(default_factory=list)
    #: The new body, when there is one.
    body: Message | None = None
    leading_space: bool = False

    @property
    def refuses(self) -> bool:
        """Whether the whole message is refused, or dropped."""
        return isinstance(self.answer, (*REFUSALS, packets.Discard))


def apply(verdict: Verdict, mail: Mail) -> Mail:
    """Make the edits of a filter; the mail as it was stays whole. Raises MilterError."""
    block = Fields(mail.message.header, mail.hidden, leading_space=verdict.leading_space)
    hidden = block.fields[mail.hidden] if mail.hidden is not None else None
    recipients = [one for one in mail.recipients if one.address not in verdict.refused]
    sender = mail.sender
    for edit in verdict.edits:
        if isinstance(edit, packets.AddHeader | packets.InsertHeader | packets.ChangeHeader):
            block.apply(edit)
        elif isinstance(edit, packets.ChangeSender):
            sender = _address(edit.address)
        elif isinstance(edit, packets.DeleteRecipient):
            gone = _address(edit.address)
            recipients = [one for one in recipients if one.address != gone]
        elif isinstance(edit, packets.AddRecipient | packets.AddRecipientWithArguments):
            arguments = getattr(edit, "arguments", b"").split()
            recipients.append(_recipient(_address(edit.address), params_of(arguments)))
    body = mail.message.body if verdict.body is None else verdict.body.body
    at = next((i for i, one in enumerate(block.fields) if one is hidden), None)
    changed = Message(bytes(block), body)
    return replace(mail, message=changed, sender=sender, recipients=tuple(recipients), hidden=at)


def _address(path: bytes) -> Address:
    try:
        return address_of(path)
    except AddressError as error:
        raise MilterError(f"names an address that is none: {error}") from error


def _recipient(address: Address, params: Mapping[str, str]) -> Recipient:
    known = {name: value for name, value in params.items() if name in ("NOTIFY", "ORCPT")}
    return Recipient.of(address, params=known)


def decision_of(answer: Packet, name: str) -> Decision:
    """Say in Mailward's words what a filter has answered."""
    reason = f"milter {name}"
    if isinstance(answer, packets.Reject):
        return Reject("5.7.1", "rejected by policy", reason=reason)
    if isinstance(answer, packets.TempFail):
        return Defer("4.7.1", "try again later", reason=reason)
    if isinstance(answer, packets.Shutdown):
        return Disconnect("4.7.0", "try again later", reason=reason)
    if isinstance(answer, packets.Discard):
        return Discard(reason)
    if isinstance(answer, packets.ReplyCode):
        status, text = parse_reply(answer.text)
        kind = Reject if status.startswith("5") else Defer
        return kind(status, text, reason=reason)
    return Accept()


def parse_reply(raw: bytes) -> tuple[str, str]:
    """Read `550 5.7.1 no`, of one line or many, into status and text. Raises MilterError."""
    lines = [_LINE.fullmatch(line) for line in raw.split(b"\r\n")]
    first = lines[0]
    if first is None or len(lines) > 32:  # noqa: PLR2004 - libmilter's own bound
        raise MilterError(f"gives a reply that is none: {raw[:80]!r}")
    words = []
    for i, line in enumerate(lines):
        last = i == len(lines) - 1
        if line is None or line[1] != first[1] or (line[2] == b"-") == last:
            raise MilterError(f"gives a reply that is none: {raw[:80]!r}")
        if line[3] and line[3][:1] != first[1][:1]:
            raise MilterError(f"gives a reply that contradicts itself: {raw[:80]!r}")
        words.append((line[4] or b"").replace(b"%%", b"%").decode("utf-8", "replace"))
    status = (first[3] or first[1][:1] + b".7.1").decode()
    return status, " ".join(words).strip() or "refused"
