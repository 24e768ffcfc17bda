"""The door of the milter family, lazy as the main door is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lazy

if TYPE_CHECKING:
    from gateway.milter import packets as packets
    from gateway.milter.client import Patience as Patience
    from gateway.milter.client import show as show
    from gateway.milter.edits import Fields as Fields
    from gateway.milter.server import Server as Server
    from gateway.milter.verdict import Mail as Mail
    from gateway.milter.verdict import Verdict as Verdict
    from gateway.milter.verdict import apply as apply
    from gateway.milter.verdict import decision_of as decision_of
    from gateway.milter.wire import LARGEST as LARGEST

#: name -> the module it lives in; "" is a module itself.
_HOME = {
    "Fields": "edits",
    "LARGEST": "wire",
    "Mail": "verdict",
    "Patience": "client",
    "Server": "server",
    "Verdict": "verdict",
    "apply": "verdict",
    "decision_of": "verdict",
    "packets": "",
    "show": "client",
}

__all__ = list(_HOME)
__getattr__ = lazy(__name__, _HOME)
