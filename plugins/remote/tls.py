"""From a policy to what TLS has to be like with one address of a destination."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from gateway import ConfigError, DnsNotFound, DnsTemporary, Problem, TlsFailed, is_ip
from gateway.smtp import Terms, unverified, verified

from . import dane
from .relay import IMPLICIT

if TYPE_CHECKING:
    import ssl

    from gateway import Clock, Dns

    from .hosts import Candidate
    from .routes import Hop
    from .sts_policy import StsPolicy


@dataclass(frozen=True, slots=True)
class Way:
    """How to connect: by the first of these terms, and where TLS fails by the next; None is in plain."""

    tries: tuple[Terms | None, ...]
    #: How a host that meets the first terms has shown who it is: "dane", "webpki", "" for not at all.
    verified: str = ""
    #: What the domain publishes (RFC 8460): "tlsa", "sts", "no-policy-found".
    policy_type: str = "no-policy-found"


class Guard:
    """Finds the way for each address. Raises ConfigError when `ca_file` is no file of authorities."""

    def __init__(self, dns: Dns, clock: Clock, authorities: str) -> None:
        self._dns = dns
        self._clock = clock
        self._file = authorities
        if authorities:
            _ = self.authorities

    @cached_property
    def authorities(self) -> ssl.SSLContext:
        """Whoever has a certificate of these authorities is who he says."""
        try:
            return verified(self._file)
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(Problem(f"remote.ca_file: {self._file}: {why}")) from error

    @cached_property
    def _anybody(self) -> ssl.SSLContext:
        return unverified()

    async def way(self, hop: Hop, candidate: Candidate, sts: StsPolicy | None, *, strict: bool) -> Way:
        """Choose the terms for one address. DANE decides before MTA-STS is asked (RFC 8461 section 2).

        `strict` is mail with REQUIRETLS (RFC 8689): the host must be beyond doubt. Raises TlsFailed when
        there is no way.
        """
        target = candidate.target
        implicit = target.port == IMPLICIT if hop.implicit is None else hop.implicit
        if target.path and not strict:
            return Way((None,))
        if hop.tls in ("dane", "mta-sts") or strict:
            base, records = await self._tlsa(candidate)
            usable = dane.usable(records)
            # Records that cannot be matched still ask for TLS; a policy may say with whom.
            if usable or (records and not (sts and sts.mode == "enforce")):
                return self._by_dane(hop, candidate, usable, base=base, implicit=implicit)
        if sts and sts.mode != "none":
            return self._by_sts(candidate, sts, strict=strict)
        if strict and not candidate.chosen:
            raise TlsFailed("that mail belongs to this host is not certain (REQUIRETLS)", "5.7.10")
        known = Terms(self.authorities, required=True, implicit=implicit, name=target.host)
        if strict or hop.tls == "verify":
            return Way((known,), "webpki")
        required = implicit or hop.tls == "encrypt" or hop.login is not None
        anybody = Terms(self._anybody, required=required, implicit=implicit, name=target.host)
        if required:
            return Way((anybody,))
        return Way((None,) if hop.tls == "none" else (anybody, None))

    def _by_dane(
        self, hop: Hop, candidate: Candidate, usable: list[dane.Record], *, base: str, implicit: bool
    ) -> Way:
        """Make TLS a must; without a record that can be matched any certificate will do (RFC 7672 2.2)."""
        names = {base, candidate.target.host, *([hop.domain] if hop.domain else [])}
        judge = partial(self._judge, usable, names) if usable else None
        terms = Terms(self._anybody, required=True, implicit=implicit, name=base, judge=judge)
        return Way((terms,), "dane" if usable else "", "tlsa")

    def _by_sts(self, candidate: Candidate, sts: StsPolicy, *, strict: bool) -> Way:
        host = candidate.target.host
        known = Terms(self.authorities, required=True, name=host)
        enforced = sts.mode == "enforce" or strict
        if not sts.allows(host):
            if enforced:
                raise TlsFailed("it is no mail host of the domain's MTA-STS policy")
            known = Terms(self.authorities, required=True, name=host, judge=_unlisted)
        anybody = Terms(self._anybody, name=host)
        return Way((known,) if enforced else (known, anybody, None), "webpki", "sts")

    def _judge(self, records: list[dane.Record], names: set[str], chain: list[bytes]) -> None:
        dane.judge(records, names, chain, self._clock.time())

    async def _tlsa(self, candidate: Candidate) -> tuple[str, list[dane.Record]]:
        """Give the TLSA records of a host that DNSSEC vouches for, and their name (RFC 7672 section 2.2)."""
        target = candidate.target
        if not candidate.chosen or is_ip(target.host) or target.path:
            return "", []
        try:
            for name in await self._bases(candidate):
                if records := await self._records(f"_{target.port}._tcp.{name}"):
                    return name, records
        except DnsTemporary as error:
            # To go on without would let whoever can cut off DNS cut off TLS, too.
            raise TlsFailed(f"its TLSA records are in doubt: {error}", kind="dnssec-invalid") from error
        return "", []

    async def _records(self, name: str) -> list[dane.Record]:
        try:
            answer = await self._dns.lookup(name, "TLSA")
        except DnsNotFound:
            return []
        found = answer.records if answer.secure else []
        return [dane.Record(one.usage, one.selector, one.mtype, one.cert) for one in found]

    async def _bases(self, candidate: Candidate) -> list[str]:
        """Give the names that may have TLSA records: behind aliases that are all validated, then before."""
        host = candidate.target.host
        if candidate.located:
            return list(dict.fromkeys([candidate.name, host]))
        if candidate.name == host:
            return []
        try:
            alias = await self._dns.lookup(host, "CNAME")
        except DnsNotFound:
            return []
        return [host] if alias.secure else []


def _unlisted(_: list[bytes]) -> None:
    raise TlsFailed("it is no mail host of the domain's MTA-STS policy")
