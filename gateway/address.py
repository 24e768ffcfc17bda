"""Mail addresses as the envelope holds them: parse, quote, compare. Pure: no IO."""

from __future__ import annotations

import re
import string
from functools import cached_property

from gateway.errors import AddressError

#: RFC 5321 section 4.5.3.1.3 asks for 256; qmail-smtpd takes 899 (spec 3.4).
LONGEST = 899

# Characters that make a local part need quotes (qmail's quote.c).
_QUOTE = re.compile(r'[^!-~]|["(),:;<>@\[\\\]]|^\.|\.$|\.\.|^$')
_UNSAFE_DOMAIN = re.compile(r'[\x00-\x20\x7f"()<>\\]')
_ESCAPE = re.compile(r'["\\\r\n]')
_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_DECODED = re.compile(r"\\(.?)|\"", re.DOTALL)


class Address(str):
    """An envelope address without `<>`; "" is the null sender (RFC 5321 section 4.5.5).

    Bytes that are not UTF-8 are kept as surrogate escapes, so `bytes(address)` is what came in.
    """

    __slots__ = ("__dict__",)

    @classmethod
    def decode(cls, raw: bytes) -> Address:
        """Make an address of the bytes of an envelope."""
        return cls(raw.decode("utf-8", "surrogateescape"))

    def __bytes__(self) -> bytes:
        return self.encode("utf-8", "surrogateescape")

    @cached_property
    def local_part(self) -> str:
        """What stands before the last `@`, or all of it."""
        return self.rpartition("@")[0] if "@" in self else str(self)

    @cached_property
    def domain(self) -> str:
        """What stands after the last `@` in lower case, or ""."""
        return lower(self.rpartition("@")[2]) if "@" in self else ""

    @property
    def is_ascii(self) -> bool:
        """Whether the address may travel without SMTPUTF8 (RFC 6531)."""
        return self.isascii()

    def quoted(self) -> str:
        """Write the address as it stands in SMTP and in headers, local part quoted where needed.

        What could end the path is inside the quotes, so `parse_path` reads the same address again.
        """
        if not self:
            return ""
        local, at, domain = self.rpartition("@") if "@" in self else (str(self), "", "")
        if _UNSAFE_DOMAIN.search(domain):
            local, at, domain = str(self), "", ""
        return f"{quote_local_part(local)}{at}{domain}"


def lower(text: str) -> str:
    """Fold the case of ASCII letters only: `str.lower` would make `k` of the Kelvin sign."""
    return text.lower() if text.isascii() else text.translate(_FOLD)


def quote_local_part(local: str) -> str:
    """Quote a local part where RFC 5321 section 4.1.2 (and qmail's quote.c) asks for it."""
    if not _QUOTE.search(local):
        return local
    return '"' + _ESCAPE.sub(r"\\\g<0>", local) + '"'


def parse_path(argument: str, keyword: str) -> tuple[Address, str]:
    """Parse the argument of MAIL (`FROM:<a@b> SIZE=1`) or RCPT (`TO:<a@b>`).

    Returns the address, unquoted, and the text of the parameters behind it. As liberal as qmail-smtpd (spec
    3.4): both of `<>` may be missing, words before `<` do not count, a source route is dropped. With "" as
    keyword any will do, or none, and `>` alone may be missing, too. Raises AddressError.
    """
    _, bracket, text = argument.partition("<")
    if not bracket:
        if keyword and argument[: len(keyword) + 1].upper() != f"{keyword}:":
            raise AddressError(f"syntax: {keyword}:<address>")
        text = argument.partition(":")[2].lstrip(" ")
    text = _without_source_route(text)
    end = _terminator(text, ">" if bracket else " ")
    if keyword and text and bracket and end == len(text):
        raise AddressError(f"syntax: {keyword}:<address>")
    address = Address(_DECODED.sub(lambda m: m[1] or "", text[:end]))
    if len(bytes(address)) > LONGEST:
        raise AddressError(f"the address is longer than {LONGEST} octets")
    if any(c in address for c in "\0\r\n"):
        raise AddressError("the address holds a control character")
    return address, text[end + 1 :].strip(" ")


def _without_source_route(text: str) -> str:
    """Drop `@a,@b:` in front of an address (RFC 5321 section 4.1.1.3)."""
    return text.partition(":")[2] if text.startswith("@") else text


def _terminator(text: str, mark: str) -> int:
    """Find the first unquoted `mark`, or the end."""
    quoted = escaped = False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif c == '"':
            quoted = not quoted
        elif c == mark and not quoted:
            return i
    return len(text)
