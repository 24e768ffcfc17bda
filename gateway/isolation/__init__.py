"""Isolation: plugins that run in threads, or in a process of their own. Nothing here knows a policy."""

from gateway.isolation.process import Process
from gateway.isolation.threads import Threads
from gateway.isolation.values import Edits, pack, unpack

__all__ = ["Edits", "Process", "Threads", "pack", "unpack"]
