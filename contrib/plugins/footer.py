"""footer: put a text below the mail that our own senders write.

Only plain text gets it, where it can be put without touching what is there: one part, text/plain, in ASCII or
UTF-8, with the encoding 7bit, 8bit or quoted-printable, not over 256 KiB. All else stays byte for byte, above
all what is signed (DKIM-Signature, ARC-Seal, multipart/signed, PGP) or encrypted: a footer would break it. So
sign behind this plugin, not before it.

    footer:
      senders: ["@example.org"]
      text: |
        Example Org, 1 Example Street

Events: none.
"""

from __future__ import annotations

import quopri
from email.message import Message as Header
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import Message, Plugin, Section, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Transaction

SIGNED = ("DKIM-Signature", "ARC-Seal", "X-PGP-Signature")
ARMOUR = (b"-----BEGIN PGP ", b"-----BEGIN PKCS7-----", b"begin 644 ")


class Settings(Section):
    """What is put below whose mail."""

    #: Senders: addresses, or `@example.org` for all of a domain.
    senders: list[Annotated[str, AfterValidator(lower)]] = []
    #: The text; `-- ` and a line end are put above it.
    text: str = ""


class Footer(Plugin[Settings]):
    """Makes a message with a longer body."""

    @hookimpl
    def incoming(self, transaction: Transaction, message: Message) -> Message | None:
        """Give the message with the text below it, or leave it alone."""
        sender = lower(transaction.sender)
        ours = {sender, f"@{sender.rpartition('@')[2]}"} & set(self.settings.senders)
        if not ours or transaction.origin == "bounce" or not self.settings.text.strip():
            return None
        encoding = plain_encoding(message, ascii_only=self.settings.text.isascii())
        body = message.body
        if encoding is None or not body or not isinstance(body, bytes) or any(one in body for one in ARMOUR):
            return None
        body += b"" if body.endswith(b"\n") else b"\n"
        return Message(message.header, body + encode(f"-- \n{self.settings.text.rstrip()}\n", encoding))


def plain_encoding(message: Message, *, ascii_only: bool) -> str | None:
    """Give the encoding of a message to which text may be added, None when it must be left alone."""
    if any(message.values(name) for name in SIGNED):
        return None
    header = Header()
    for name in ("Content-Type", "Content-Transfer-Encoding"):
        values = message.values(name)
        if len(values) > 1:
            return None
        if values:
            header[name] = values[0]
    charset = str(header.get_param("charset", "us-ascii")).lower()
    encoding = str(header.get("Content-Transfer-Encoding", "7bit")).strip().lower()
    known = {"us-ascii", "utf-8"} if ascii_only else {"utf-8"}
    encodings = {"7bit", "8bit", "quoted-printable"} if ascii_only else {"8bit", "quoted-printable"}
    if header.get_content_type() != "text/plain" or charset not in known or encoding not in encodings:
        return None
    return encoding


def encode(text: str, encoding: str) -> bytes:
    """Write the text as the message is written."""
    raw = text.encode()
    return quopri.encodestring(raw) if encoding == "quoted-printable" else raw
