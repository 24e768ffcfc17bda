"""Durations, sizes and socket addresses as people write them in YAML. Pure: no IO."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from gateway.endpoint import Endpoint

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Written:
    """Mark of a type: what an admin writes for it, in the reference."""

    text: str


def parse_duration(value: Any) -> float:
    """Read `30s`, `5m`, `12h`, `7d`; gives seconds, as which a float is taken. Raises ValueError."""
    if isinstance(value, float):
        return value
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])", str(value))
    if not match:
        raise ValueError("write a time as 30s, 5m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """Write seconds as `parse_duration` reads them, in the largest unit that fits."""
    for unit, size in reversed(_SECONDS.items()):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def parse_size(value: Any) -> int:
    """Read `500`, `64K`, `10M`, `2G`; gives bytes. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", str(value))
    if not match:
        raise ValueError("write a size as 500, 64K, 10M or 2G")
    return int(match[1]) * _BYTES[match[2]]


def format_size(size: int) -> str:
    """Write bytes as `parse_size` reads them, in the largest unit that fits."""
    for unit, factor in reversed(_BYTES.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


@dataclass(frozen=True, slots=True)
class Often:
    """So many in so many seconds."""

    limit: int
    window: float

    @classmethod
    def parse(cls, value: Any) -> Often:
        """Read `10/s`, `100/m`, `1000/h`, `5000/d`. Raises ValueError."""
        if isinstance(value, Often):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,8})/([smhd])", str(value))
        if not match:
            raise ValueError("write a rate as 10/s, 100/m, 1000/h or 5000/d")
        return cls(int(match[1]), float(_SECONDS[match[2]]))

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in _SECONDS.items() if seconds == self.window)
        return f"{self.limit}/{unit}"


def parse_network(value: Any) -> Network:
    """Read `192.0.2.0/24`, `192.0.2.7` or an IPv6 network. Raises ValueError."""
    return ipaddress.ip_network(str(value), strict=True)


Duration = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(format_duration), Written("time")
]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size), Written("size")]
Address = Annotated[Endpoint, BeforeValidator(Endpoint.parse), PlainSerializer(str), Written("host:port")]
IpNetwork = Annotated[Network, BeforeValidator(parse_network), PlainSerializer(str), Written("network")]
Rate = Annotated[Often, BeforeValidator(Often.parse), PlainSerializer(str), Written("rate")]
