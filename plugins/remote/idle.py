"""Connections that wait a moment for more mail to the same hop.

A hop is more than its hosts: mail with another TLS policy, login or source never shares a connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.smtp import Connection

    from .routes import Hop

#: Seconds; longer would hold slots of the other host for nothing.
WAIT = 5.0
#: Connections that may wait at a time.
WAITING = 100
#: Messages on one connection.
MESSAGES = 100


class Idle:
    """Keeps a bounded number of connections for a short time."""

    def __init__(self) -> None:
        self._waiting: dict[Hop, list[tuple[Connection, asyncio.TimerHandle]]] = {}
        self._count = 0
        self._closed = False

    def take(self, hop: Hop) -> Connection | None:
        """Give a connection to this hop that still seems alive, the one used last."""
        while waiting := self._waiting.get(hop):
            connection, timer = waiting[-1]
            timer.cancel()
            self._drop(hop, connection)
            if connection.reusable:
                return connection
            connection.quit()
        return None

    def put(self, hop: Hop, connection: Connection) -> None:
        """Keep a connection, or end it when it is no good for more."""
        spent = connection.offered >= MESSAGES or self._count >= WAITING
        if self._closed or spent or not connection.reusable:
            connection.quit()
            return
        timer = asyncio.get_running_loop().call_later(WAIT, self._expire, hop, connection)
        self._waiting.setdefault(hop, []).append((connection, timer))
        self._count += 1

    def close(self) -> None:
        """End all of them, and keep no more."""
        self._closed = True
        for waiting in self._waiting.values():
            for connection, timer in waiting:
                timer.cancel()
                connection.quit()
        self._waiting.clear()
        self._count = 0

    def _expire(self, hop: Hop, connection: Connection) -> None:
        self._drop(hop, connection)
        connection.quit()

    def _drop(self, hop: Hop, connection: Connection) -> None:
        kept = [pair for pair in self._waiting[hop] if pair[0] is not connection]
        if kept:
            self._waiting[hop] = kept
        else:
            del self._waiting[hop]
        self._count -= 1
