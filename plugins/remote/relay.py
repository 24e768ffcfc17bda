"""The hosts that stand in for a domain's MX, as the settings write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr, model_validator

from gateway import Block, DnsNotFound, a_label, is_ip, lower

SMTP, LMTP, IMPLICIT = 25, 24, 465
_HOST = re.compile(r"(?:\[([^\[\]\s]+)\]|([^\s:\[\]*/@]+))(?::(\d{1,5}))?")

#: What TLS with a destination has to be like; the page of this plugin has the table.
Policy = Literal["none", "may", "encrypt", "verify", "dane", "mta-sts"]


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a route."""

    host: str
    port: int = SMTP
    lmtp: bool = False
    #: A socket on this host.
    path: str = ""

    def __str__(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return ("lmtp:" if self.lmtp else "") + (f"unix:{self.path}" if self.path else f"{name}:{self.port}")


def parse_host(value: Any) -> Host:
    """Read `host`, `host:port`, `192.0.2.1`, `[2001:db8::1]:25`, with `lmtp:` before it. Raises ValueError.

    No port is 25, and 24 for LMTP, which may also be at `lmtp:unix:/path`.
    """
    text = str(value)
    rest = text.removeprefix("lmtp:")
    lmtp = rest != text and not rest.isdecimal()
    rest = rest if lmtp else text
    if lmtp and rest.startswith("unix:/"):
        return Host("", 0, lmtp=True, path=rest[len("unix:") :])
    usual = LMTP if lmtp else SMTP
    if is_ip(rest):
        return Host(rest, usual, lmtp)
    match = _HOST.fullmatch(rest)
    if not match or (match[1] and not is_ip(match[1])) or not 0 < int(match[3] or usual) < 2**16:
        raise ValueError(
            "write a host as mx.example.org, mx.example.org:26, 192.0.2.1, [2001:db8::1]:25 or lmtp:HOST"
        )
    return Host(match[1] or match[2], int(match[3] or usual), lmtp)


def parse_key(text: str) -> str:
    """Write a route's domain as it is looked up. Raises ValueError."""
    if re.search(r"[\s@:]", text) and not text.startswith("["):
        raise ValueError(
            f'{text!r} is no domain: write example.org, .example.org for all below it, or "" for all'
        )
    return as_key(text)


def parse_sender(text: str) -> str:
    """Write a sender's address or domain as it is looked up. Raises ValueError."""
    local, at, domain = text.rpartition("@")
    if not domain or (at and not local):
        raise ValueError(f"{text!r} is no sender: write ann@example.org, example.org or .example.org")
    return lower(local) + at + parse_key(domain)


def as_key(domain: str) -> str:
    """Write a domain in lower case and A-labels."""
    dot = "." if domain.startswith(".") else ""
    rest = lower(domain[len(dot) :])
    try:
        return dot + (rest if rest.isascii() else a_label(rest))
    except DnsNotFound:
        return dot + rest


def _ip(text: str) -> str:
    if not is_ip(text):
        raise ValueError(f"{text!r} is no IP address")
    return text


Domain = Annotated[str, AfterValidator(parse_key)]
Sender = Annotated[str, AfterValidator(parse_sender)]
Source = Annotated[str, AfterValidator(_ip)]


class Relay(Block):
    """The hosts that mail is given to, and how they are spoken to."""

    #: Tried in order when one cannot be reached; none at all means the domain's MX.
    hosts: tuple[Annotated[Host, BeforeValidator(parse_host), PlainSerializer(str)], ...]
    #: Log in as this user, with `password`: only under TLS, and by default only where `verify` is met.
    user: str = ""
    #: The password; `password_file: PATH` reads it from the first line of a file.
    password: SecretStr = SecretStr("")
    #: In place of the policy for the domain.
    tls: Policy | None = None
    #: TLS from the first byte on; by default at port 465.
    implicit: bool | None = None
    #: Our addresses to connect from, in place of those for all.
    source: tuple[Source, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"hosts": (value,) if value else ()}
        return value

    @model_validator(mode="after")
    def _login_is_safe(self) -> Self:
        if bool(self.user) != bool(self.password.get_secret_value()):
            raise ValueError("a login needs both user and password (or password_file)")
        if self.user and not self.hosts:
            raise ValueError("a login is for hosts that are named")
        if self.user and self.tls not in (None, "encrypt", "verify", "dane"):
            raise ValueError("a password is sent under TLS only: tls must be encrypt, verify or dane")
        return self
