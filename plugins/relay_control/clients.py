"""The entries of `clients`: who may relay, and to what extent. Pure: no IO."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from gateway import Network, Rate, controls, lower, parse_network

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway import Address

IP = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_LISTED = re.compile(r"|(?:[^\s@]*@)?\.?[^\s@.]+(?:\.[^\s@.]+)*")


def _host(text: str) -> str:
    if not _HOST.fullmatch(lower(text)):
        raise ValueError(
            f"{text!r} is no host name: write mail.example.org, or .example.org for all below it"
        )
    return lower(text)


def _listed(text: str) -> str:
    if not _LISTED.fullmatch(text):
        raise ValueError(f"{text!r}: write joe@example.org, example.org, or .example.org for all below it")
    return lower(text)


Host = Annotated[str, AfterValidator(_host)]
Listed = Annotated[str, AfterValidator(_listed)]


class Client(BaseModel):
    """Clients that may relay, and to what extent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Addresses of the clients: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`.
    networks: list[Annotated[Network, BeforeValidator(parse_network)]] = []
    #: Names of the clients: `mail.example.org`, or `.example.org` for all below it.
    hosts: list[Host] = []
    #: Only for these senders (addresses or domains; "" is the null sender); empty means any.
    senders: list[Listed] = []
    #: Only to these recipients (addresses or domains); empty means any.
    recipients: list[Listed] = []
    #: How many recipients one of these clients may send to, as `100/m`; more are deferred.
    max_rate: Rate | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Read `127.0.0.0/8` as a network and `.example.org` as a host."""
        if not isinstance(value, str):
            return value
        return {"networks" if re.fullmatch(r"[0-9][0-9./]*|.*[:/].*", value) else "hosts": [value]}

    @model_validator(mode="after")
    def _names_somebody(self) -> Client:
        # Senders are easily forged, so they can only narrow down who the client is.
        if not self.networks and not self.hosts:
            raise ValueError("a client needs networks or hosts: senders alone are easily forged")
        return self

    def has_address(self, ip: IP) -> bool:
        """Whether `networks` holds this address."""
        return any(ip in network for network in self.networks)

    def has_name(self, name: str) -> bool:
        """Whether `hosts` holds this name; a client without a name has none."""
        return bool(name) and any(key in self.hosts for key in controls.domain_keys(name))

    def permits(self, sender: Address, recipient: Address) -> bool:
        """Whether these clients may send such mail."""
        return _covers(self.senders, sender) and _covers(self.recipients, recipient)


def plain_ip(text: str) -> IP | None:
    """Read a client's address, None for what is not from the network.

    An IPv4 address in IPv6 clothes (`::ffff:192.0.2.7`) is the IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _covers(entries: Collection[str], address: Address) -> bool:
    """Whether an address is among the entries, by itself or by its domain; no entries cover all."""
    if not entries or lower(address) in entries:
        return True
    return bool(address.domain) and any(key in entries for key in controls.domain_keys(address.domain))
