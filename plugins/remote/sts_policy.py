"""MTA-STS (RFC 8461): what a domain's record and its policy say. Pure: no IO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    Mode = Literal["enforce", "testing", "none"]

_RECORD = re.compile(r"v=STSv1[ \t]*;[ \t]*(.*)", re.DOTALL)
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
#: Section 3.2: a policy counts for a year at most.
LONGEST = 31_557_600
#: MX patterns of one policy.
PATTERNS = 1000


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """What a domain asks of those who send to it."""

    mode: Mode
    mx: tuple[str, ...]
    #: Seconds that it counts from its fetching on.
    max_age: int

    def allows(self, host: str) -> bool:
        """Whether mail may go to this host; `*.` stands for one label (section 4.1)."""
        host = host.lower().removesuffix(".")
        return host in self.mx or f"*.{host.partition('.')[2]}" in self.mx


def parse_record(texts: Sequence[str]) -> str:
    """Give the id of the one record that is of version 1; "" when there is none, or more (section 3.1)."""
    found = [match[1] for text in texts if (match := _RECORD.fullmatch(text))]
    if len(found) != 1:
        return ""
    fields = dict(_pairs(found[0], ";", "="))
    return fields.get("id", "") if _ID.fullmatch(fields.get("id", "")) else ""


def parse_policy(text: str) -> StsPolicy:
    """Read a policy. Raises ValueError."""
    pairs = _pairs(text.replace("\r\n", "\n"), "\n", ":")
    # The first of a key counts (section 3.2).
    fields = dict(reversed(pairs))
    mx = tuple(value.lower().removesuffix(".") for key, value in pairs if key == "mx")
    mode, age = fields.get("mode", ""), fields.get("max_age", "")
    if fields.get("version") != "STSv1" or mode not in ("enforce", "testing", "none"):
        raise ValueError("it has no version or mode that is known")
    if not re.fullmatch(r"[0-9]{1,10}", age):
        raise ValueError("max_age is no number of seconds")
    if len(mx) > PATTERNS or not all(_HOST.fullmatch(one) for one in mx) or (mode != "none" and not mx):
        raise ValueError("mx is missing, or names no host")
    return StsPolicy(cast("Mode", mode), mx, min(int(age), LONGEST))


def _pairs(text: str, end: str, mark: str) -> list[tuple[str, str]]:
    parts = (part.partition(mark) for part in text.split(end))
    return [(key.strip(), value.strip()) for key, found, value in parts if found]
