"""Routes: which hosts stand in for a domain's MX (qmail spec 1.11 and 7.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_validator

from gateway import ConfigError, DnsNotFound, Endpoint, Place, Problem, a_label, controls, is_ip, lower

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway import Address, Plugin

SMTP = 25
_HOST = re.compile(r"(?:\[([^\[\]\s]+)\]|([^\s:\[\]*/@]+))(?::(\d{1,5}))?")


def parse_host(value: Any) -> Endpoint:
    """Read `host`, `host:port`, `192.0.2.1`, `[2001:db8::1]:25`; no port is 25. Raises ValueError."""
    text = str(value)
    if is_ip(text):
        return Endpoint(text, SMTP)
    match = _HOST.fullmatch(text)
    if not match or (match[1] and not is_ip(match[1])) or not 0 < int(match[3] or SMTP) < 2**16:
        raise ValueError("write a host as mx.example.org, mx.example.org:26, 192.0.2.1 or [2001:db8::1]:25")
    return Endpoint(match[1] or match[2], int(match[3] or SMTP))


def parse_key(text: str) -> str:
    """Write a route's domain as it is looked up. Raises ValueError."""
    if re.search(r"[\s@:]", text) and not text.startswith("["):
        raise ValueError(
            f'{text!r} is no domain: write example.org, .example.org for all below it, or "" for all'
        )
    return _as_key(text)


Host = Annotated[Endpoint, BeforeValidator(parse_host), PlainSerializer(str)]
Domain = Annotated[str, AfterValidator(parse_key)]


class Relay(BaseModel):
    """The hosts that mail for a domain is given to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Tried in order when one cannot be reached; none at all means the domain's MX.
    hosts: tuple[Host, ...]

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"hosts": (value,) if value else ()}
        return value


@dataclass(frozen=True, slots=True)
class Hop:
    """Where mail for a domain goes next: to these hosts, or to the domain's MX when there are none."""

    hosts: tuple[Endpoint, ...]
    #: "" when hosts are given, so that domains with one route share a hop.
    domain: str
    rule: str = field(default="", compare=False)

    def __str__(self) -> str:
        return ",".join(map(str, self.hosts)) or self.domain


def find_hop(routes: Mapping[str, Relay], address: Address) -> Hop:
    """Find the next hop: the first key that is there decides, as in smtproutes."""
    domain = _as_key(address.domain)
    for key in (*controls.domain_keys(domain), ""):
        if key in routes:
            hosts = routes[key].hosts
            return Hop(hosts, "" if hosts else domain, f'remote.routes: "{key}"')
    return Hop((), domain)


def read_routes(plugin: Plugin[Any]) -> dict[str, Relay]:
    """Read the smtproutes file that the settings name. Raises ConfigError."""
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
        try:
            routes[_as_key(key)] = Relay(hosts=_file_hosts(value))
        except ValueError as error:
            raise ConfigError(Problem(str(error), Place(str(path), number))) from error
    return routes


def _file_hosts(value: str) -> tuple[Endpoint, ...]:
    """Read `host:port` of smtproutes, where letters behind the port do not count (qmail spec 7.1)."""
    value = re.sub(r"(:\d+)[^\]]*$", r"\1", value.strip()) if not is_ip(value) else value
    return (parse_host(value),) if value else ()


def _as_key(domain: str) -> str:
    dot = "." if domain.startswith(".") else ""
    rest = lower(domain[len(dot) :])
    try:
        return dot + (rest if rest.isascii() else a_label(rest))
    except DnsNotFound:
        return dot + rest
