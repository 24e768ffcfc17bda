"""From a next hop to the addresses to try, in order (RFC 5321 section 5.1, qmail spec 7.2 and 7.3)."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import DnsNotFound, DnsTemporary, Exchangers, Located, is_ip
from gateway.smtp import Target, Verdict

from .relay import SMTP, Host

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway import Dns

    from .routes import Hop

#: MX records beyond these, best first, are not looked at; nor are addresses of one of them.
EXCHANGERS = 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address to try, and what DNSSEC says of the way to it."""

    target: Target
    #: That this host takes the mail is beyond doubt: a validated MX record says so, or a route of ours.
    chosen: bool
    #: Its address was validated.
    located: bool
    #: The name that the address stands at, which is another one behind an alias.
    name: str


#: Preference, and where to connect.
Ranked = tuple[int, Candidate]


async def find_targets(dns: Dns, hop: Hop, own: Callable[[], Collection[str]]) -> list[Candidate] | Verdict:
    """Give the addresses to try, best first, or the verdict when there are none."""
    if hop.hosts:
        found, doubt = await _resolve(dns, [(0, host) for host in hop.hosts], chosen=True)
        if found:
            return [candidate for _, candidate in found]
        why = "DNS gives no answer for" if doubt else "DNS knows no address of"
        return Verdict("deferred", "4.4.3", f"{why} the hosts of the route: {hop}")
    looked_up = await _exchangers(dns, hop.domain)
    if isinstance(looked_up, Verdict):
        return looked_up
    exchangers, secure = looked_up
    hosts = [(preference, Host(host, SMTP)) for preference, host in exchangers[:EXCHANGERS]]
    found, doubt = await _resolve(dns, hosts, chosen=secure)
    if found:
        return without_self(found, own()) or Verdict(
            "failed", "5.4.6", f"mail for {hop.domain} should be delivered here, but is not set up to be"
        )
    if doubt:
        return Verdict("deferred", "4.4.3", f"DNS gives no answer for the hosts of {hop.domain}")
    if [host for _, host in exchangers] == [hop.domain]:
        return Verdict("failed", "5.1.2", f"DNS knows no host or domain {hop.domain}")
    return Verdict("failed", "5.4.4", f"no mail host of {hop.domain} has an address")


def without_self(found: list[Ranked], own: Collection[str]) -> list[Candidate]:
    """Leave out this host, and all that are no better than it, so that mail never comes back."""
    best = min((preference for preference, one in found if _is_own(one.target.ip, own)), default=None)
    return [one for preference, one in found if best is None or preference < best]


async def _exchangers(dns: Dns, domain: str) -> Exchangers | Verdict:
    """Give (preference, host) of a domain, best first, equals in random order.

    Without an MX record the domain itself is the host, and nobody chose it (RFC 7672 section 2.2.2).
    """
    if not domain:
        return Verdict("failed", "5.1.3", "the address has no domain")
    if domain.startswith("["):
        ip = domain[1:-1].removeprefix("ipv6:")
        if domain.endswith("]") and is_ip(ip) and (":" in ip) == domain.startswith("[ipv6:"):
            return Exchangers([(0, ip)], secure=True)
        return Verdict("failed", "5.1.3", f"{domain} is no address of a host")
    if is_ip(domain):
        return Exchangers([(0, domain)], secure=True)
    try:
        found, secure = await dns.exchangers(domain)
    except DnsNotFound:
        return Exchangers([(0, domain)], secure=True)
    except DnsTemporary as error:
        return Verdict("deferred", "4.4.3", f"DNS gives no answer for {domain}: {error}")
    if all(host == "" for _, host in found):
        return Verdict("failed", "5.1.10", f"{domain} takes no mail (null MX)")
    random.SystemRandom().shuffle(found)
    ranked = sorted(((preference, host) for preference, host in found if host), key=lambda pair: pair[0])
    return Exchangers(ranked, secure)


async def _resolve(dns: Dns, hosts: list[tuple[int, Host]], *, chosen: bool) -> tuple[list[Ranked], bool]:
    """Look the addresses of all hosts up; tells also whether an answer was in doubt."""
    answers = await asyncio.gather(*(_locate(dns, host) for _, host in hosts), return_exceptions=True)
    found: list[Ranked] = []
    doubt = False
    for (preference, host), answer in zip(hosts, answers, strict=True):
        if isinstance(answer, DnsTemporary):
            doubt = True
        elif isinstance(answer, DnsNotFound):
            continue
        elif isinstance(answer, BaseException):
            raise answer
        else:
            for ip in answer.ips[:EXCHANGERS]:
                target = Target(host.host, ip, host.port, host.lmtp, host.path)
                found.append((preference, Candidate(target, chosen, answer.secure, answer.name)))
    return found, doubt


async def _locate(dns: Dns, host: Host) -> Located:
    return Located([""]) if host.path else await dns.located(host.host)


def _is_own(ip: str, own: Collection[str]) -> bool:
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback or address.is_unspecified or str(address) in own
