"""country_block: refuse clients by country, looked up in a file on this machine.

The file is CSV, one range of addresses a line: first address, last address, two letters of the country. Lists
in this form are published by several registries and vendors; IPv4 and IPv6 may be mixed. No network is asked.

    country_block:
      file: /var/lib/mailward-countries/ranges.csv
      refuse: [XA, XB]

The file is read at the start, and again when it changes, in a thread; 300,000 ranges take about a second. A
client that no range holds is let through. A wrong file keeps the gateway from starting; later it makes
clients wait (421) unless `on_error: skip` is set.

Refusals are 554 5.7.1 with the reason `country`.
"""

from __future__ import annotations

import asyncio
import csv
import ipaddress
from bisect import bisect_right
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import ConfigError, Place, Plugin, Problem, Reject, Section, controls, hookimpl

if TYPE_CHECKING:
    from gateway import Context, Session

    #: (first, last, country) in order, as numbers in IPv6's space.
    Ranges = tuple[list[int], list[int], list[str]]

#: IPv4 addresses stand among the IPv6 ones as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
MAPPED = 0xFFFF << 32


class Settings(Section):
    """Where the ranges are, and who is refused."""

    #: The CSV file; a relative path starts at the folder that holds `conf.d`.
    file: str
    #: Countries to refuse, by two letters.
    refuse: list[Annotated[str, AfterValidator(str.upper)]] = []


class CountryBlock(Plugin[Settings]):
    """Looks a client up when it connects."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        path = self.site.base / self.settings.file
        self._file = controls.ControlFile(path, parse_ranges, "country_block.file", self.place("file"))
        self._reading = asyncio.Lock()

    @hookimpl
    async def connect(self, session: Session) -> Reject | None:
        """Refuse a client of a listed country."""
        async with self._reading:
            ranges = await asyncio.to_thread(self._file.get)
        country = find(ranges, session.client.ip)
        if country not in self.settings.refuse:
            return None
        return Reject("5.7.1", "no mail is accepted from your network", reason="country", rule=country)


def find(ranges: Ranges, ip: str) -> str:
    """Give the country of an address, "" when no range holds it."""
    first, last, countries = ranges
    try:
        number = _number(ip)
    except ValueError:  # a Unix socket has no address
        return ""
    at = bisect_right(first, number) - 1
    return countries[at] if at >= 0 and number <= last[at] else ""


def parse_ranges(text: str, name: str) -> Ranges:
    """Read the file. Raises ConfigError with the first line that is wrong."""
    rows: list[tuple[int, int, str]] = []
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        if not row or row[0].startswith("#"):
            continue
        try:
            rows.append((_number(row[0]), _number(row[1]), row[2].strip().upper()))
        except (IndexError, ValueError):
            problem = "write the first address, the last address, and the country"
            raise ConfigError(Problem(problem, Place(name, number))) from None
    rows.sort()
    return [one[0] for one in rows], [one[1] for one in rows], [one[2] for one in rows]


def _number(text: str) -> int:
    address = ipaddress.ip_address(text.strip())
    return int(address) | MAPPED if address.version == 4 else int(address)  # noqa: PLR2004 - IPv4
