"""MTA-STS policies: found, fetched over HTTPS, and kept over restarts (RFC 8461)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from gateway import DnsError, TlsFailed

from .https import NotGiven, get
from .sts_policy import StsPolicy, parse_policy, parse_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway import Clock, Dns

#: A whole fetch, in seconds (section 3.3 suggests a minute), and after a vain one none for so long.
PATIENCE, PAUSE = 30.0, 300.0
#: Domains whose policy is kept, and of which it is known that fetching was in vain.
KEPT = 10_000
_DOMAIN = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,252}")


class _Kept(NamedTuple):
    """A policy on disk."""

    id: str
    until: float
    policy: StsPolicy


class MtaSts:
    """Policies by domain. A file each in `folder`, which workers share."""

    def __init__(
        self, dns: Dns, clock: Clock, authorities: Callable[[], ssl.SSLContext], folder: Path
    ) -> None:
        self._dns = dns
        self._clock = clock
        self._authorities = authorities
        self._folder = folder
        self._vain: dict[str, float] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, domain: str) -> StsPolicy | None:
        """Give the policy that counts now, if any.

        Raises TlsFailed when the domain has one that cannot be had, and none is kept: to be told, no more,
        since whoever could keep us from it could as well have hidden that there is one.
        """
        if not _DOMAIN.fullmatch(domain):
            return None
        kept = self._read(domain)
        try:
            new = parse_record(await self._dns.txt(f"_mta-sts.{domain}"))
        except DnsError:
            new = ""
        if new and (kept is None or kept.id != new):
            lock = self._locks.setdefault(domain, asyncio.Lock())
            async with lock:
                kept = await self._renew(domain, new, self._read(domain))
        return kept.policy if kept else None

    async def _renew(self, domain: str, new: str, kept: _Kept | None) -> _Kept | None:
        now = self._clock.time()
        if (kept and kept.id == new) or self._vain.get(domain, 0.0) > now:
            return kept
        try:
            policy = parse_policy(await self._fetch(domain))
        except (OSError, ValueError, NotGiven, DnsError) as error:
            if len(self._vain) >= KEPT:
                self._vain.clear()
            self._vain[domain] = now + PAUSE
            if kept:
                return kept
            raise TlsFailed(
                f"the MTA-STS policy of {domain} cannot be had: {error}", kind=_kind(error)
            ) from error
        fresh = _Kept(new, now + policy.max_age, policy)
        self._write(domain, fresh)
        return fresh

    async def _fetch(self, domain: str) -> str:
        host = f"mta-sts.{domain}"
        async with asyncio.timeout(PATIENCE):
            (ip, *_) = await self._dns.addresses(host)
            return await get(host, ip, "/.well-known/mta-sts.txt", self._authorities())

    def _read(self, domain: str) -> _Kept | None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            said = json.loads((self._folder / domain).read_bytes())
            policy = StsPolicy(said["mode"], tuple(said["mx"]), said["max_age"])
            if said["until"] > self._clock.time():
                return _Kept(said["id"], said["until"], policy)
        return None

    def _write(self, domain: str, kept: _Kept) -> None:
        """Keep a policy; without a place for it, it counts for now."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._prune()
            new = self._folder / f".{domain}"
            new.write_text(json.dumps({"id": kept.id, "until": kept.until, **asdict(kept.policy)}))
            new.replace(self._folder / domain)

    def _prune(self) -> None:
        """Make room: what was fetched the longest ago goes first."""
        files = list(self._folder.iterdir())
        if len(files) < KEPT:
            return
        files.sort(key=lambda path: path.stat().st_mtime)
        for path in files[: KEPT // 10]:
            path.unlink(missing_ok=True)


def _kind(error: Exception) -> str:
    """Name the fault as RFC 8460 section 4.3.2.2 does."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "sts-webpki-invalid"
    return (
        "sts-policy-fetch-error" if isinstance(error, OSError | NotGiven | DnsError) else "sts-policy-invalid"
    )
