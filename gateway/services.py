"""Clock and Dns: what plugins may use of the world outside, and tests may fake."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.name
import dns.resolver
import dns.reversename

from gateway.errors import DnsNotFound, DnsTemporary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dns.rdata import Rdata

#: A PTR set longer than this is somebody's joke; the rest is not looked at.
POINTERS = 10
#: Answers that are kept for as long as their TTL says.
CACHED = 10_000


class Clock:
    """The time of day, and a time that never jumps."""

    def now(self) -> datetime:
        """Give the time of day, aware, in UTC."""
        return datetime.fromtimestamp(self.time(), UTC)

    def time(self) -> float:
        """Give the time of day in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Give seconds since some moment; only differences count."""
        return time.monotonic()


class Answer(NamedTuple):
    """Records of one kind, as dnspython's objects."""

    records: list[Any]
    #: Validated by DNSSEC all the way, over every alias.
    secure: bool = False
    #: The name that the records stand at, which is another one behind an alias.
    name: str = ""


class Exchangers(NamedTuple):
    """The mail hosts of a domain: (preference, host) of each; a host "" is RFC 7505's "no mail here"."""

    hosts: list[tuple[int, str]]
    secure: bool = False


class Located(NamedTuple):
    """Where a host is: its IPv4, then its IPv6 addresses."""

    ips: list[str]
    secure: bool = False
    #: The name that the addresses stand at.
    name: str = ""


class Dns:
    """Look-ups in the DNS, each within `lifetime` seconds, search domains left alone.

    Every method raises DnsNotFound when there is no such name or record, DnsTemporary on any doubt.
    Names may be international; they are asked for as A-labels, and given in lower case without the last dot.

    An answer is `secure` when a resolver on this host says that it has validated it (the AD bit, RFC 6840
    section 5.8). A resolver elsewhere is not believed: anybody on the way can set that bit.
    """

    def __init__(self, nameservers: Sequence[str] = (), port: int = 53, lifetime: float = 20.0) -> None:
        self._nameservers = list(nameservers)
        self._port = port
        self._lifetime = lifetime
        self._resolver: dns.asyncresolver.Resolver | None = None

    @property
    def validates(self) -> bool:
        """Whether answers can be `secure` at all: a resolver on this host is asked."""
        try:
            servers = self._asked().nameservers
        except dns.resolver.NoResolverConfiguration:
            return False
        return any(_is_here(str(server)) for server in servers)

    async def mx(self, domain: str) -> list[tuple[int, str]]:
        """Give (preference, host) of each MX record; a host "" is RFC 7505's "no mail here"."""
        return (await self.exchangers(domain)).hosts

    async def exchangers(self, domain: str) -> Exchangers:
        """Give the same, and whether it was validated."""
        answer = await self.lookup(domain, "MX")
        return Exchangers([(r.preference, _plain(r.exchange)) for r in answer.records], answer.secure)

    async def addresses(self, host: str) -> list[str]:
        """Give the IPv4, then the IPv6 addresses of a host; an address gives itself.

        One family is enough: doubt about the other then does not count.
        """
        return (await self.located(host)).ips

    async def located(self, host: str) -> Located:
        """Give the same, whether all of it was validated, and the name behind an alias."""
        if is_ip(host):
            return Located([host], secure=False, name=host)
        both = await asyncio.gather(self.lookup(host, "A"), self.lookup(host, "AAAA"), return_exceptions=True)
        answers = [answer for answer in both if isinstance(answer, Answer)]
        if not answers:
            raise _worst(answer for answer in both if isinstance(answer, BaseException))
        ips = [r.address for answer in answers for r in answer.records]
        return Located(ips, all(answer.secure for answer in answers), answers[0].name)

    async def pointer(self, ip: str) -> list[str]:
        """Give the names that an address claims to have; anybody can claim any name."""
        name = dns.reversename.from_address(ip).to_text()
        return [_plain(r.target) for r in await self.records(name, "PTR")]

    async def confirmed_name(self, ip: str) -> str:
        """Give the first name of an address that points back to it, "" when none does."""
        try:
            names = await self.pointer(ip)
        except DnsNotFound:
            return ""
        doubt: DnsTemporary | None = None
        for name in names[:POINTERS]:
            try:
                if await self._points_to(name, ip):
                    return name
            except DnsTemporary as error:
                doubt = error
        if doubt:
            raise doubt
        return ""

    async def txt(self, name: str) -> list[str]:
        """Give each TXT record, its strings joined (RFC 7208 section 3.3)."""
        return [
            b"".join(r.strings).decode("utf-8", "surrogateescape") for r in await self.records(name, "TXT")
        ]

    async def records(self, name: str, kind: str) -> list[Any]:
        """Give the records of one kind as dnspython's objects."""
        return (await self.lookup(name, kind)).records

    async def lookup(self, name: str, kind: str) -> Answer:
        """Give the answer to one question: the one place that asks the network."""
        try:
            answer = await self._asked().resolve(a_label(name) + ".", kind, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
            raise DnsNotFound(f"no {kind} record for {name}") from error
        except (dns.exception.DNSException, OSError) as error:
            raise DnsTemporary(f"no answer for {kind} of {name}") from error
        validated = bool(answer.response.flags & dns.flags.AD) and _is_here(answer.nameserver or "")
        return Answer(list(answer), validated, _plain(answer.canonical_name))

    def _asked(self) -> dns.asyncresolver.Resolver:
        """Read /etc/resolv.conf at the first question, so that a host without one can start."""
        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
            if self._nameservers:
                self._resolver.nameservers = list(self._nameservers)
                self._resolver.port = self._port
            self._resolver.lifetime = self._lifetime
            # To ask with AD set is to ask to be told (RFC 6840 section 5.7).
            self._resolver.set_flags(dns.flags.RD | dns.flags.AD)
            self._resolver.cache = dns.resolver.LRUCache(CACHED)
        return self._resolver

    async def _points_to(self, name: str, ip: str) -> bool:
        address = ipaddress.ip_address(ip)
        try:
            records: list[Rdata] = await self.records(name, "A" if address.version == 4 else "AAAA")  # noqa: PLR2004
        except DnsNotFound:
            return False
        return any(ipaddress.ip_address(r.to_text()) == address for r in records)


def a_label(domain: str) -> str:
    """Write a domain as it stands in the DNS: lower case, IDNA A-labels, no last dot. Raises DnsNotFound."""
    text = domain.lower().removesuffix(".")
    try:
        name = dns.name.from_text(text, idna_codec=dns.name.IDNA_2008_Practical)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise DnsNotFound(f"{domain!r} cannot be a name in the DNS") from error
    return text if text.isascii() else name.to_text(omit_final_dot=True).lower()


def is_ip(text: str) -> bool:
    """Tell whether this is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_here(server: str) -> bool:
    return is_ip(server) and ipaddress.ip_address(server).is_loopback


def _plain(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower().removesuffix(".")


def _worst(errors: Iterable[BaseException]) -> BaseException:
    """Choose what to raise: what is no answer at all, then doubt, then a plain no."""
    return max(
        errors, key=lambda error: (not isinstance(error, DnsNotFound), not isinstance(error, DnsTemporary))
    )
