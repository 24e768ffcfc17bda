"""The door of the settings: from conf.d to typed values. Lazy as the main door is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lazy

if TYPE_CHECKING:
    from gateway.settings.core import Certificate as Certificate
    from gateway.settings.core import Concurrency as Concurrency
    from gateway.settings.core import Limits as Limits
    from gateway.settings.core import Listener as Listener
    from gateway.settings.core import Output as Output
    from gateway.settings.core import Queue as Queue
    from gateway.settings.core import Settings as Settings
    from gateway.settings.core import Tls as Tls
    from gateway.settings.options import Block as Block
    from gateway.settings.options import ConfigPath as ConfigPath
    from gateway.settings.options import describe as describe
    from gateway.settings.options import wrong as wrong
    from gateway.settings.tree import Tree as Tree

#: name -> the module it lives in.
_HOME = {
    "Block": "options",
    "Certificate": "core",
    "Concurrency": "core",
    "ConfigPath": "options",
    "Limits": "core",
    "Listener": "core",
    "Output": "core",
    "Queue": "core",
    "Settings": "core",
    "Tls": "core",
    "Tree": "tree",
    "describe": "options",
    "wrong": "options",
}

__all__ = list(_HOME)
__getattr__ = lazy(__name__, _HOME)
