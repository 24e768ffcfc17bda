"""One listener: makes a Connection for each client, and ends them all."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from gateway.smtp import reply as replies
from gateway.smtp.server.accepting import Acceptor
from gateway.smtp.server.commands import COMMANDS, LMTP_COMMANDS
from gateway.smtp.server.connection import Connection

if TYPE_CHECKING:
    from gateway.envelope import Client
    from gateway.login import Login
    from gateway.reception import Reception
    from gateway.settings import Limits, Listener
    from gateway.smtp.server.frame import Frame
    from gateway.smtp.tls import Certificates


class Server:
    """Serves SMTP on a listener."""

    def __init__(
        self,
        reception: Reception,
        limits: Limits,
        greeting: str,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        login: Login,
        certificates: Certificates,
    ) -> None:
        self.reception = reception
        self.login = login
        self.certificates = certificates
        self.limits = limits
        #: Our name, and what a site wants said behind it.
        self.greeting = greeting
        self.listener = listener
        self.commands = LMTP_COMMANDS if listener.protocol == "lmtp" else COMMANDS
        self.loop = loop
        self.closing = False
        self.connections: set[Frame] = set()
        self._empty = asyncio.Event()

    def __call__(self, introduced: tuple[Client, str] | None = None) -> Connection:
        """Make the protocol object of a new connection; a proxy may have named the client."""
        return Connection(self, introduced)

    async def listen(self, sock: socket.socket) -> asyncio.Server | Acceptor:
        """Serve at a listening socket until what this gives is closed."""
        if self.listener.proxy or self.listener.tls == "implicit":
            return Acceptor(self, sock)
        if sock.family == socket.AF_UNIX:
            return await self.loop.create_unix_server(self, sock=sock)
        return await self.loop.create_server(self, sock=sock)

    def end_sessions(self, user: str) -> int:
        """End the sessions of a login; gives how many there were."""
        theirs = [one for one in self.connections if one.session.user == user]
        for connection in theirs:
            connection.dismiss(replies.LOCKED, "locked")
        return len(theirs)

    async def close_gently(self) -> None:
        """Let commands under way come to their reply, say 421 to all clients, wait until they are gone."""
        self.closing = True
        for connection in list(self.connections):
            connection.dismiss(replies.SHUTTING_DOWN, "shutdown")
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    def abort(self) -> None:
        """Cut off whoever is still there."""
        for connection in list(self.connections):
            connection.abort()

    def forget(self, connection: Frame) -> None:
        """Drop a connection that is over."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()
