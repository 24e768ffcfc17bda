"""Listeners where something stands before the first word of SMTP: a proxy's header, TLS, or both.

The event loop would hand what comes first to the reader of lines, so connections are taken from the socket
here, and become sessions once that is read.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.envelope import Client
from gateway.smtp.server.proxy import read_header, trusted
from gateway.smtp.server.tls import HANDSHAKE, reason

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import AsyncIterator

    from gateway.smtp.server.listening import Server

#: After a failure to accept, such as no more open files, the next try waits this many seconds.
_PAUSE = 0.1


class Acceptor:
    """Takes connections from one listening socket, as an `asyncio.Server` does."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._loop = server.loop
        self._waiting: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Take no more connections; those that were taken go on."""
        if self._waiting:
            self._waiting.cancel()
        # Before the socket is closed: another that shares it would keep its events coming.
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        try:
            link, address = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker has it, or the client has left
            return
        except OSError:
            self._loop.remove_reader(self._sock)
            self._waiting = self._loop.call_later(_PAUSE, self._listen)
            return
        link.setblocking(False)
        ip = address[0] if isinstance(address, tuple) else ""
        task = self._loop.create_task(self._begin(link, Client(ip).ip))
        self._server.beginning.add(task)
        task.add_done_callback(self._server.beginning.discard)

    async def _begin(self, link: socket.socket, ip: str) -> None:
        """Make a session of a connection; who never comes to it may not do so too often at one time."""
        server, listener = self._server, self._server.listener
        introduced = None
        try:
            if trusted(ip, listener.proxy):
                # It speaks for all clients, so it has the room of all; each of them has its own from here on.
                async with self._room(ip, "sessions"):
                    introduced = await read_header(link, self._loop)
            client = introduced[0].ip if introduced else ip
            async with self._room(client, "sessions_per_client"):
                await self._connect(link, introduced, client)
        except _NoRoom:
            link.close()
        except OSError:
            link.close()
            server.reception.tell(
                events.SessionRefused(
                    client_ip=ip, listener=listener.name, protocol=listener.protocol, reason="proxy_header"
                )
            )

    @contextlib.asynccontextmanager
    async def _room(self, ip: str, limit: str) -> AsyncIterator[None]:
        """Hold a place among those that are no sessions yet. Raises _NoRoom."""
        reception, allowed = self._server.reception, getattr(self._server.limits, limit)
        place = f"beginning/{limit}/{ip}"
        if not await reception.counters.take(place, allowed):
            told: dict[str, Any] = {"client_ip": ip, "listener": self._server.listener.name}
            reception.tell(events.LimitExceeded(**told, limit=limit, allowed=allowed))
            raise _NoRoom
        try:
            yield
        finally:
            await reception.counters.give(place)

    async def _connect(self, link: socket.socket, introduced: tuple[Client, str] | None, client: str) -> None:
        """Shake hands where TLS comes first, and begin the session."""
        server, secured = self._server, self._server.listener.tls == "implicit"
        try:
            await self._loop.connect_accepted_socket(
                lambda: server(introduced),
                link,
                ssl=server.certificates.context if secured else None,
                ssl_handshake_timeout=HANDSHAKE if secured else None,
            )
        except OSError as error:
            told: dict[str, Any] = {"client_ip": client, "listener": server.listener.name}
            server.reception.tell(events.TlsFailed(**told, error=reason(error)))


class _NoRoom(Exception):
    """Too many are beginning at one time."""
