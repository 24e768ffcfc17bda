"""What an MTA tells of a client by packets and macros, as Mailward's words. Pure: no IO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.address import Address, parse_path
from gateway.envelope import Client
from gateway.milter import packets, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The macros that we ask for, by stage. Postfix then sends these and no others.
WANTED: tuple[tuple[type[packets.Packet], str], ...] = (
    (packets.Connect, "j _ daemon_name daemon_addr client_addr client_name client_port client_resolve"),
    (packets.Helo, "tls_version cipher cipher_bits cert_subject cert_issuer"),
    (packets.Mail, "i auth_type auth_authen auth_author mail_addr mail_host mail_mailer"),
    (packets.Rcpt, "i rcpt_addr rcpt_host rcpt_mailer"),
    (packets.Data, "i"),
    (packets.EndOfHeaders, "i"),
    (packets.EndOfMessage, "i"),
)
#: As they stand in a negotiation.
WANTED_LISTS = tuple(
    (wire.MACRO_STAGES.index(kind), tuple(name.encode() for name in names.split())) for kind, names in WANTED
)
#: Commands from the outermost to the innermost; a new one ends what was told for those behind it.
_ORDER = b"CHMRTLNBE"


class Facts:
    """The macros of a session; a new command forgets what belonged to later ones."""

    def __init__(self) -> None:
        self._values: dict[bytes, dict[str, str]] = {}

    def keep(self, told: packets.Macros) -> None:
        """Take a packet of macros."""
        at = _ORDER.find(told.command)
        if at < 0:
            return
        for later in list(self._values):
            if _ORDER.find(later) > at:
                del self._values[later]
        self._values[told.command] = {text(name): text(value) for name, value in told.values}

    def all(self) -> dict[str, str]:
        """Give every macro that counts now; the later command's value wins."""
        ordered = sorted(self._values, key=_ORDER.find)
        return {name: value for command in ordered for name, value in self._values[command].items()}

    def get(self, name: str) -> str:
        """Give the value of a macro, or ""."""
        return self.all().get(name, "")


def client_of(connect: packets.Connect, facts: Facts) -> Client:
    """Say who the MTA's client is; a name counts only when the MTA has confirmed it."""
    if connect.family not in (b"4", b"6"):
        return Client("")
    name = facts.get("client_name") or text(connect.hostname)
    doubtful = facts.get("client_resolve") not in ("", "OK") or "may be forged" in facts.get("_")
    if doubtful or name == "unknown" or name.startswith("["):
        name = ""
    return Client(plain_ip(text(connect.address)), connect.port, name.lower().removesuffix("."))


def plain_ip(address: str) -> str:
    """Take the `IPv6:` off that Sendmail puts in front."""
    return address[5:] if address[:5].lower() == "ipv6:" else address


def tls_of(facts: Facts) -> str:
    """Write version and cipher as a session has them; "" without TLS."""
    return " ".join(filter(None, (facts.get("tls_version"), facts.get("cipher"))))


def address_of(path: bytes) -> Address:
    """Read `<a@b>`. Raises AddressError."""
    return parse_path(text(path), "")[0]


def path_of(address: Address) -> bytes:
    """Write `<a@b>`."""
    return b"<%b>" % address.quoted().encode("utf-8", "surrogateescape")


def params_of(arguments: Sequence[bytes]) -> dict[str, str]:
    """Read ESMTP parameters: names in upper case, values as sent."""
    pairs = (text(argument).partition("=") for argument in arguments)
    return {name.upper(): value for name, _, value in pairs}


def text(raw: bytes) -> str:
    """Read what a client may have written in any bytes."""
    return raw.decode("utf-8", "surrogateescape")
