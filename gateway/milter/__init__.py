"""The door of the milter family, lazy as the main door is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.milter import packets as packets
    from gateway.milter.server import Server as Server
    from gateway.milter.wire import LARGEST as LARGEST

#: name -> the module it lives in; "" is a module itself.
_HOME = {
    "LARGEST": "wire",
    "Server": "server",
    "packets": "",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not home:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(f"{__name__}.{home}"), name)
