"""One listener: makes a Connection for each client, and ends them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.server import Server as AnyServer
from gateway.smtp import reply as replies
from gateway.smtp.server.accepting import Acceptor
from gateway.smtp.server.commands import COMMANDS, LMTP_COMMANDS
from gateway.smtp.server.connection import Connection

if TYPE_CHECKING:
    import asyncio
    import socket

    from gateway.authentication.login import Login
    from gateway.envelope import Client
    from gateway.reception import Reception
    from gateway.server import Listening
    from gateway.settings import Limits, Listener
    from gateway.smtp.server.frame import Frame
    from gateway.smtp.tls import Certificates


class Server(AnyServer["Frame"]):
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
        super().__init__(limits, loop)
        self.reception = reception
        self.login = login
        self.certificates = certificates
        #: Our name, and what a site wants said behind it.
        self.greeting = greeting
        self.listener = listener
        #: Connections that are not sessions yet: a proxy's header or TLS comes first.
        self.beginning: set[asyncio.Task[None]] = set()
        self.commands = LMTP_COMMANDS if listener.protocol == "lmtp" else COMMANDS

    def __call__(self, introduced: tuple[Client, str] | None = None) -> Connection:
        """Make the protocol object of a new connection; a proxy may have named the client."""
        return Connection(self, introduced)

    async def listen(self, sock: socket.socket) -> Listening:
        """Serve at a listening socket until what this gives is closed."""
        if self.listener.proxy or self.listener.tls == "implicit":
            return Acceptor(self, sock)
        return await super().listen(sock)

    async def close_gently(self) -> None:
        """Drop who has not come to a session yet, and let the others end."""
        for task in self.beginning:
            task.cancel()
        await super().close_gently()

    def end_sessions(self, user: str) -> int:
        """End the sessions of a login; gives how many there were."""
        theirs = [one for one in self.connections if one.session.user == user]
        for connection in theirs:
            self.reception.bar(connection.session, "locked", replies.LOCKED)
            connection.dismiss(replies.LOCKED, "locked", at_once=True)
        return len(theirs)

    def dismiss(self, connection: Frame) -> None:
        """Say 421 to a client as soon as no command of it is under way."""
        connection.dismiss(replies.SHUTTING_DOWN, "shutdown")
