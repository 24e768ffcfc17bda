"""One listener: makes a Connection for each client, and ends them all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.smtp import reply as replies
from gateway.smtp.server.commands import COMMANDS, LMTP_COMMANDS
from gateway.smtp.server.connection import Connection

if TYPE_CHECKING:
    from gateway.login import Login
    from gateway.reception import Reception
    from gateway.settings import Limits, Listener
    from gateway.smtp.server.frame import Frame
    from gateway.smtp.tls import Certificates


class Server:
    """Serves SMTP on a listener: `await loop.create_server(server, sock=sock)`."""

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

    def __call__(self) -> Connection:
        """Make the protocol object of a new connection."""
        return Connection(self)

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
            if isinstance(connection.transport, asyncio.WriteTransport):
                connection.transport.abort()

    def forget(self, connection: Frame) -> None:
        """Drop a connection that is over."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()
