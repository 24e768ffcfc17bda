"""MAIL and RCPT as one host takes them: an envelope in the words of its extensions. Pure: no IO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import DnsNotFound
from gateway.services import a_label
from gateway.smtp.talk import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.address import Address
    from gateway.smtp.talk import Envelope

_UNSENDABLE = re.compile(r"[\r\n\0]")
#: The value of a parameter that may be passed on (RFC 5321 section 4.1.2, esmtp-value; RFC 6533 section 3).
_VALUE = re.compile(r"[!-<>-~][!-~]{0,499}|(?i:utf-8);[^\x00-\x20\x7f-\x9f\ud800-\udfff]{1,494}")


@dataclass(frozen=True, slots=True)
class Offer:
    """An envelope for a host."""

    envelope: Envelope
    #: Keyword -> parameters, as EHLO answered.
    extensions: Mapping[str, str]
    #: The connection is under TLS.
    secure: bool
    #: We have logged in.
    known: bool

    @property
    def keeps_tls(self) -> bool:
        """The host promises to hand it on under TLS alone (RFC 8689)."""
        return self.secure and "REQUIRETLS" in self.extensions

    def unsendable(self, recipient: Address) -> Verdict | None:
        """Say what forbids this recipient before a word is said."""
        envelope = self.envelope
        for address, status in ((envelope.sender, "5.1.7"), (recipient, "5.1.3")):
            if _UNSENDABLE.search(address):
                return Verdict("failed", status, "the address holds a control character")
        utf8 = "SMTPUTF8" in self.extensions
        addresses = (envelope.sender, recipient)
        if (envelope.international and not utf8) or not all(
            _can_go(address, utf8=utf8) for address in addresses
        ):
            return Verdict("failed", "5.6.7", "the host takes no international addresses (SMTPUTF8)")
        limit = self.extensions.get("SIZE", "")
        if limit.isdecimal() and 0 < int(limit[:20]) < envelope.size:
            return Verdict(
                "failed", "5.3.4", f"the message is larger than the {limit} bytes that the host takes"
            )
        return None

    def mail(self) -> bytes:
        """Write MAIL."""
        envelope = self.envelope
        line = b"MAIL FROM:<" + self._wire(envelope.sender) + b">"
        if "SIZE" in self.extensions:
            line += b" SIZE=%d" % envelope.size
        if envelope.eight_bit and "8BITMIME" in self.extensions:
            line += b" BODY=8BITMIME"
        if self._says_utf8:
            line += b" SMTPUTF8"
        # Also of a bounce, which does not depend on it (RFC 8689 section 5).
        if self.keeps_tls and (envelope.require_tls or "REQUIRETLS" in envelope.params):
            line += b" REQUIRETLS"
        if self.known and envelope.params.get("AUTH") == "<>":
            # Nobody vouches for the sender, and our login must not (RFC 4954 section 5).
            line += b" AUTH=<>"
        return line + self._dsn(envelope.params, "RET", "ENVID")

    def rcpt(self, index: int) -> bytes:
        """Write RCPT for one of the recipients."""
        envelope = self.envelope
        line = b"RCPT TO:<" + self._wire(envelope.recipients[index]) + b">"
        if not envelope.rcpt_params:
            return line
        params = dict(envelope.rcpt_params[index])
        original = params.get("ORCPT", "")
        if not original.isascii() and not self._says_utf8:
            params["ORCPT"] = _without_utf8(original)
        return line + self._dsn(params, "NOTIFY", "ORCPT")

    def _dsn(self, params: Mapping[str, str], *names: str) -> bytes:
        """Pass on what the sender wants to be told, as it was given (RFC 3461 section 5.2)."""
        if "DSN" not in self.extensions:
            return b""
        given = ((name, params.get(name, "")) for name in names)
        return b"".join(f" {name}={value}".encode() for name, value in given if _VALUE.fullmatch(value))

    @property
    def _says_utf8(self) -> bool:
        """Whether MAIL has SMTPUTF8: it is offered, and needed."""
        envelope = self.envelope
        addresses = (envelope.sender, *envelope.recipients)
        needed = envelope.international or not all(address.is_ascii for address in addresses)
        return needed and "SMTPUTF8" in self.extensions

    def _wire(self, address: Address) -> bytes:
        """Write an address as this host takes it."""
        if address.is_ascii or "SMTPUTF8" in self.extensions:
            return address.quoted().encode("utf-8", "surrogateescape")
        return _in_ascii(address).encode("ascii")


def _without_utf8(original: str) -> str:
    """Write an ORCPT in ASCII (RFC 6533 section 3, utf-8-addr-xtext); "" for what is none of type utf-8."""
    coded = re.sub(r"[^\x00-\x7f]", lambda hit: f"\\x{{{ord(hit[0]):X}}}", original)
    return coded if original.lower().startswith("utf-8;") else ""


def _can_go(address: Address, *, utf8: bool) -> bool:
    if address.is_ascii:
        return True
    try:
        address.encode()
    except UnicodeEncodeError:
        return False
    return utf8 or _in_ascii(address).isascii()


def _in_ascii(address: Address) -> str:
    """Write an address with its domain in A-labels (RFC 5890)."""
    local, at, domain = address.quoted().rpartition("@")
    try:
        return f"{local}{at}{a_label(domain)}"
    except DnsNotFound:
        return str(address)
