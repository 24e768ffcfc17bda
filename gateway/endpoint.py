"""A place to listen at or connect to. Pure, and free of settings: root reads it, too."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

#: Connections of a socket that wait to be taken; the kernel's net.core.somaxconn may allow fewer.
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to listen at or connect to: `host:port`, `*:25`, `[::1]:25`, `unix:/path`."""

    host: str
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: Any) -> Endpoint:
        """Read the written form. Raises ValueError."""
        if isinstance(text, Endpoint):
            return text
        if str(text).startswith("unix:/"):
            return cls("", 0, str(text)[len("unix:") :])
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", str(text))
        if not match or int(match[3]) > 65535:  # noqa: PLR2004
            raise ValueError("write an address as host:port, *:25, [::1]:25 or unix:/path")
        if match[1]:
            ipaddress.IPv6Address(match[1])
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
