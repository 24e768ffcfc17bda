"""What a listener's server is, whatever it speaks: its connections, and how they come to their end."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gateway.endpoint import BACKLOG

if TYPE_CHECKING:
    from gateway.settings import Limits


class Connection(Protocol):
    """One client."""

    def abort(self) -> None:
        """Cut it off."""


class Listening(Protocol):
    """What takes connections from one socket."""

    def close(self) -> None:
        """Take no more."""


C = TypeVar("C", bound=Connection)


class Server(ABC, Generic[C]):
    """Serves one protocol on a listener."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.loop = loop
        self.closing = False
        self.connections: set[C] = set()
        self._empty = asyncio.Event()

    @abstractmethod
    def __call__(self) -> Any:
        """Make the protocol object of a new connection."""

    @abstractmethod
    def dismiss(self, connection: C) -> None:
        """Have a connection end as soon as nothing is under way in it."""

    async def listen(self, sock: socket.socket) -> Listening:
        """Serve at a listening socket until what this gives is closed."""
        # The loop listens again, and by itself for a hundred: a burst of clients would be reset.
        if sock.family == socket.AF_UNIX:
            return await self.loop.create_unix_server(self, sock=sock, backlog=BACKLOG)
        return await self.loop.create_server(self, sock=sock, backlog=BACKLOG)

    async def close_gently(self) -> None:
        """Let what is under way come to its answer, and wait until all clients are gone."""
        self.closing = True
        for connection in list(self.connections):
            self.dismiss(connection)
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    def abort(self) -> None:
        """Cut off whoever is still there."""
        for connection in list(self.connections):
            connection.abort()

    def forget(self, connection: C) -> None:
        """Drop a connection that is over."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()
