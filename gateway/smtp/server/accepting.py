"""Listeners where something stands before the first word of SMTP: a proxy's header, TLS, or both.

The event loop would hand what comes first to the reader of lines, so connections are taken from the socket
here, and become sessions once that is read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.smtp.server.proxy import read_header, trusted
from gateway.smtp.server.tls import HANDSHAKE, reason

if TYPE_CHECKING:
    import socket

    from gateway.smtp.server.listening import Server

#: After a failure to accept, such as no more open files, the next try waits this many seconds.
_PAUSE = 0.1


class Acceptor:
    """Takes connections from one listening socket, as an `asyncio.Server` does."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._loop = server.loop
        self._beginning: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Take no more connections; those that have not become sessions yet are dropped."""
        self._accepting.cancel()
        for task in self._beginning:
            task.cancel()
        self._sock.close()

    async def _accept(self) -> None:
        while True:
            try:
                link, address = await self._loop.sock_accept(self._sock)
            except OSError:
                await asyncio.sleep(_PAUSE)
                continue
            ip = address[0] if isinstance(address, tuple) else ""
            task = self._loop.create_task(self._begin(link, ip.removeprefix("::ffff:")))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, link: socket.socket, ip: str) -> None:
        """Make a session of a connection; who never comes to it may not do so too often at one time."""
        counters, limits = self._server.reception.counters, self._server.limits
        taken = f"beginning/{ip}"
        if not await counters.take(taken, limits.sessions_per_client):
            link.close()
            return
        try:
            await self._introduce(link, ip)
        finally:
            await counters.give(taken)

    async def _introduce(self, link: socket.socket, ip: str) -> None:
        server, listener = self._server, self._server.listener
        told: dict[str, Any] = {"client_ip": ip, "listener": listener.name}
        introduced, secured = None, listener.tls == "implicit"
        try:
            if trusted(ip, listener.proxy):
                introduced = await read_header(link, self._loop)
        except OSError:
            link.close()
            server.reception.tell(
                events.SessionRefused(**told, protocol=listener.protocol, reason="proxy_header")
            )
            return
        try:
            await self._loop.connect_accepted_socket(
                lambda: server(introduced),
                link,
                ssl=server.certificates.context if secured else None,
                ssl_handshake_timeout=HANDSHAKE if secured else None,
            )
        except OSError as error:
            server.reception.tell(events.TlsFailed(**told, error=reason(error)))
