"""Routes: which way mail for a domain goes (qmail spec 1.11 and 7.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gateway import ConfigError, Place, Problem, controls, is_ip, lower
from gateway.smtp import Login

from .relay import Host, Policy, Relay, as_key, parse_host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway import Address, Plugin


@dataclass(frozen=True, slots=True)
class Hop:
    """Where mail goes next: to these hosts, or to the domain's MX when there are none.

    Mail that shares a hop may share a connection, so all that a connection depends on is in here.
    """

    hosts: tuple[Host, ...]
    #: "" when hosts are given, so that domains with one route share a hop.
    domain: str
    tls: Policy = "may"
    implicit: bool | None = None
    login: Login | None = None
    sources: tuple[str, ...] = ()
    rule: str = field(default="", compare=False)

    def __str__(self) -> str:
        return ",".join(map(str, self.hosts)) or self.domain

    @property
    def lenient(self) -> Hop:
        """The same for mail that is rather to arrive than to go under TLS (RFC 8689 section 5).

        What a domain publishes counts no more; what our settings ask for does, and what a login needs.
        """
        published = self.tls in ("dane", "mta-sts") and not self.login
        return replace(self, tls="may") if published else self


class Routes:
    """Finds the next hop by recipient, and where the recipient's domain has no route, by sender."""

    def __init__(
        self,
        routes: Mapping[str, Relay],
        senders: Mapping[str, Relay] | None = None,
        policies: Mapping[str, Policy] | None = None,
        sources: Sequence[str] = (),
        place: Callable[[str, str], Place | None] = lambda _table, _key: None,
    ) -> None:
        self._routes = routes
        self._senders = senders or {}
        self._policies = policies or {}
        self._sources = tuple(sources)
        self._place = place

    def hop(self, address: Address, sender: Address | None = None) -> Hop:
        """Find the next hop: the first key that is there decides, as in smtproutes."""
        domain = as_key(address.domain)
        keys = list(controls.domain_keys(domain))
        for table, name, candidates in (
            (self._routes, "routes", keys),
            (self._senders, "senders", _sender_keys(sender)),
            (self._routes, "routes", [""]),
        ):
            for key in candidates:
                if key in table:
                    place = self._place(name, key) or f"remote.{name}"
                    return self._by(table[key], domain, f"{place}: {key or '(everything else)'}")
        return Hop((), domain, self._policy(domain), sources=self._sources)

    def _by(self, relay: Relay, domain: str, rule: str) -> Hop:
        login = Login(relay.user, relay.password.get_secret_value()) if relay.user else None
        return Hop(
            relay.hosts,
            "" if relay.hosts else domain,
            relay.tls or ("verify" if login else self._policy(domain)),
            relay.implicit,
            login,
            relay.source or self._sources,
            rule,
        )

    def _policy(self, domain: str) -> Policy:
        keys = [*controls.domain_keys(domain), ""]
        return next((self._policies[key] for key in keys if key in self._policies), "may")


def _sender_keys(sender: Address | None) -> list[str]:
    if not sender:
        return []
    domain = as_key(sender.domain)
    return [f"{lower(sender.local_part)}@{domain}", *controls.domain_keys(domain)]


def read_routes(plugin: Plugin[Any]) -> dict[str, tuple[Relay, Place]]:
    """Read the smtproutes file that the settings name: each with its line. Raises ConfigError."""
    if not plugin.settings.file:
        return {}
    path = plugin.site.base / plugin.settings.file
    try:
        lines = controls.read_list(path)
    except OSError as error:
        raise ConfigError(Problem(f"remote.file: {path}: {error.strerror}", plugin.place("file"))) from error
    if lines is None:
        raise ConfigError(Problem(f"remote.file: {path} does not exist", plugin.place("file")))
    routes = {}
    # The key of a literal, `[1.2.3.4]:host`, holds no colon; that of an IPv6 literal cannot be written.
    for key, (number, value) in controls.colon_map(lines).items():
        place = Place(str(path), number)
        try:
            routes[as_key(key)] = Relay(hosts=_file_hosts(value)), place
        except ValueError as error:
            raise ConfigError(Problem(str(error), place)) from error
    return routes


def _file_hosts(value: str) -> tuple[Host, ...]:
    """Read `host:port` of smtproutes, where letters behind the port do not count (qmail spec 7.1)."""
    value = re.sub(r"(:\d+)[^\]]*$", r"\1", value.strip()) if not is_ip(value) else value
    return (parse_host(value),) if value else ()
