"""Reads the queue that qmail left on disk (qmail spec section 10), so that no mail in it is lost."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway import controls
from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, Route
from gateway.queue.birth import described

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.message import Spool

#: Bytes read of a message at a time.
_BLOCK = 1024 * 1024
#: The head of a paragraph in a bounce file: who has failed.
_FAILED = re.compile(rb"(?:\A|\n\n)<(.*)>:\n")


@dataclass(slots=True)
class Left:
    """A message in the old queue: who it is from, and whom it has still to reach."""

    number: str
    birth: float
    sender: bytes
    #: Its text; who may read the old queue may put a copy in its place.
    text: Path
    #: As the sender wrote them.
    waiting: list[bytes] = field(default_factory=list)
    #: As qmail had rewritten them for delivery on this host.
    local: list[bytes] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Make the entry's id: a UUIDv7 (RFC 9562) that is the same whenever this message is read."""
        digest = hashlib.sha256(f"{self.number} {self.birth:.3f}".encode()).digest()
        random = int.from_bytes(digest[:10], "big")
        stamp = int(self.birth * 1000) & (1 << 48) - 1
        low = 7 << 76 | (random >> 68) << 64 | 2 << 62 | random & (1 << 62) - 1
        return str(uuid.UUID(int=stamp << 80 | low))


def left_in(queue: Path) -> Iterator[Left]:
    """Give what is queued, the oldest number first. Raises OSError."""
    for text in sorted((queue / "mess").rglob("*"), key=lambda path: path.name.zfill(20)):
        if text.name.isdecimal() and text.is_file():
            found = _todo(queue, text) or _preprocessed(queue, text)
            if found:
                yield found


def entry_of(left: Left, spool: Spool, virtual: Mapping[str, tuple[int, str]]) -> Entry:
    """Make the entry of a message; what is for this host is not routed anew.

    Raises OSError, MessageTooBig.
    """
    with left.text.open("rb") as file:
        while block := file.read(_BLOCK):
            spool.write(block)
    message = spool.finish()
    here = Route("dot_qmail", "local", rule="the old queue")
    rows: list[tuple[Recipient, Route | None]] = [
        (Recipient.of(Address.decode(one)), None) for one in left.waiting
    ]
    rows += [(_on_this_host(Address.decode(one), virtual), here) for one in left.local]
    recipients = [
        EntryRecipient(number, one, route=route, due=left.birth) for number, (one, route) in enumerate(rows)
    ]
    sender = Address.decode(left.sender)
    facts = {key: value for key, value in described(message.header).items() if value}
    return Entry(left.id, sender, message, recipients, left.birth, facts=facts, size=message.size)


def virtual_domains(control: Path) -> dict[str, tuple[int, str]]:
    """Read the virtual domains by which the old queue was filled."""
    return controls.colon_map(controls.read_list(control / "virtualdomains") or ())


def _todo(queue: Path, text: Path) -> Left | None:
    """Read an envelope that qmail-send has not looked at; it counts before all other files (spec 10.2)."""
    found = next((path for path in _places(queue / "todo", text) if path.is_file()), None)
    if found is None:
        return None
    words = found.read_bytes().split(b"\0")
    sender = next((word[1:] for word in words if word[:1] == b"F"), b"")
    waiting = [word[1:] for word in words if word[:1] == b"T"]
    return Left(text.name, found.stat().st_mtime, sender, text, waiting)


def _preprocessed(queue: Path, text: Path) -> Left | None:
    info = queue / "info" / text.parent.name / text.name
    if not info.is_file():
        return None  # never committed, or at its end
    sender = info.read_bytes().split(b"\0")[0].removeprefix(b"F")
    left = Left(text.name, info.stat().st_mtime, sender, text)
    left.waiting = _not_done(queue / "remote" / text.parent.name / text.name)
    left.local = _not_done(queue / "local" / text.parent.name / text.name)
    bounce = next((path for path in _places(queue / "bounce", text) if path.is_file()), None)
    # Their bounce was not sent: they are tried once more, and then it is ours to send.
    left.waiting += _FAILED.findall(bounce.read_bytes()) if bounce else []
    return left if left.waiting or left.local else None


def _places(folder: Path, text: Path) -> Iterator[Path]:
    """Give where a file may be: some patches split these folders, too."""
    yield folder / text.name
    yield folder / text.parent.name / text.name


def _not_done(path: Path) -> list[bytes]:
    """Give the recipients of a channel but those that are marked D."""
    words = path.read_bytes().split(b"\0") if path.is_file() else []
    return [word[1:] for word in words if word[:1] == b"T"]


def _on_this_host(address: Address, virtual: Mapping[str, tuple[int, str]]) -> Recipient:
    """Give the recipient with the address that the sender wrote: without its account (qmail spec 5.5)."""
    for key in (*controls.domain_keys(address.domain), ""):
        prefix = f"{virtual[key][1]}-" if key in virtual else ""
        if len(prefix) > 1 and address.startswith(prefix):
            return Recipient(address, Address(address[len(prefix) :]), claimed="virtual_domains")
        if key in virtual:
            break
    return Recipient(address, address, claimed="locals")
