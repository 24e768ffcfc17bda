"""What speaks the protocols of the listeners, and the certificates that they show.

A reload that changes a listener takes its sockets from the server that had them and gives them to a new one:
who connects from then on meets the new settings, and sessions under way end by those they began with.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakSet

from gateway import milter, smtp
from gateway.answering import Answering
from gateway.authentication.login import Login, secret
from gateway.errors import ConfigError
from gateway.smtp.tls import Certificates, read_file

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.endpoint import Endpoint
    from gateway.events import Event
    from gateway.listeners import Sockets
    from gateway.plugin import Services
    from gateway.reception import Reception
    from gateway.server import Listening
    from gateway.settings import Listener, Settings

    Server = smtp.Server | milter.Server

#: Changed certificates are in use after this many seconds at most.
LOOK = 30.0


@dataclass(slots=True)
class Served:
    """An address, and what serves it."""

    listener: Listener
    server: Server
    #: Its sockets, and what takes connections from each.
    taking: list[tuple[socket.socket, Listening]] = field(default_factory=list)

    def close(self) -> None:
        """Take no more connections."""
        for _, listening in self.taking:
            listening.close()


class Serving:
    """The servers of one worker. What a reload brings counts for sessions that begin after it."""

    def __init__(self, services: Services, settings: Callable[[], Settings]) -> None:
        self._services = services
        self._settings = settings
        self._prepared: Certificates
        self._reception: Reception
        self._login: Login
        self._served: dict[Endpoint, Served] = {}
        #: Servers that take no more connections; each is here while it has sessions.
        self._former: WeakSet[Server] = WeakSet()
        self.certificates: Certificates

    async def prepare(self, settings: Settings, order: Mapping[str, Sequence[str]]) -> None:
        """Load the certificates, and check that each listener has what it offers. Raises ConfigError."""
        agency = self._services.agency
        certificates = await asyncio.to_thread(
            Certificates, settings.tls, agency.read if agency else read_file
        )
        for listener in settings.listeners:
            if (
                listener.tls in ("required", "implicit")
                and listener.protocol != "milter"
                and not certificates
            ):
                raise ConfigError(
                    f"listener {listener.name}: tls: {listener.tls} needs a certificate: set tls.certificates"
                )
            if listener.auth != "none" and not order["authenticate"]:
                raise ConfigError(
                    f"listener {listener.name}: auth: {listener.auth} needs a plugin that knows logins, "
                    "such as auth_file: give it a section"
                )
        self._prepared = certificates

    def begin(self, reception: Reception) -> None:
        """Be ready to make servers, with what was prepared."""
        self.certificates = self._prepared
        self._reception = reception
        own = secret(self._settings().gateway.state)
        self._login = Login(reception, self._services, lambda: self._settings().limits, own)

    @property
    def addresses(self) -> Iterable[Endpoint]:
        """Where connections are taken."""
        return self._served.keys()

    @property
    def servers(self) -> list[Server]:
        """The servers, and those whose last sessions are under way."""
        return [*(one.server for one in self._served.values()), *self._former]

    async def serve(self, endpoint: Endpoint, sockets: Iterable[socket.socket]) -> None:
        """Take what comes in by these sockets of a listener."""
        if endpoint not in self._served:
            listener = next(one for one in self._settings().listeners if one.address == endpoint)
            self._served[endpoint] = Served(listener, self._server(listener))
        served = self._served[endpoint]
        for one in sockets:
            served.taking.append((one, await served.server.listen(one)))

    async def switch(self, opened: Sockets) -> None:
        """Use what was prepared, and these sockets of listeners that are new."""
        self.certificates = self._prepared
        settings = self._settings()
        wanted = {listener.address: listener for listener in settings.listeners}
        changed: Sockets = {}
        for endpoint, served in list(self._served.items()):
            if served.listener == wanted.get(endpoint):
                self._renew(served.server, settings)
                continue
            if endpoint in wanted:
                # Open all the time: who connects meanwhile waits, and is not refused.
                changed[endpoint] = [one.dup() for one, _ in served.taking]
            served.close()
            self._former.add(self._served.pop(endpoint).server)
        for endpoint, sockets in (changed | opened).items():
            await self.serve(endpoint, sockets)

    def close(self) -> None:
        """Take no more connections."""
        for served in self._served.values():
            served.close()
        for server in self.servers:
            server.closing = True

    async def dismiss(self, seconds: float) -> None:
        """Let commands under way come to their reply; who takes longer is cut off, unanswered."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(server.close_gently() for server in self.servers))
        except TimeoutError:
            for server in self.servers:
                server.abort()

    def end_sessions(self, user: str) -> int:
        """End the sessions of a login; gives how many there were."""
        return sum(one.end_sessions(user) for one in self.servers if isinstance(one, smtp.Server))

    def _renew(self, server: Server, settings: Settings) -> None:
        """Let a server whose listener is the same have what else has changed."""
        server.limits = settings.limits
        if isinstance(server, smtp.Server):
            server.greeting, server.certificates = settings.gateway.greeting, self.certificates

    def _server(self, listener: Listener) -> Server:
        """Make what speaks a listener's protocol."""
        settings, loop = self._settings(), asyncio.get_running_loop()
        if listener.protocol == "milter":
            return milter.Server(Answering(self._reception), settings.limits, listener.name, loop)
        greeting = settings.gateway.greeting
        return smtp.Server(
            self._reception, settings.limits, greeting, listener, loop, self._login, self.certificates
        )

    async def watch(self, emit: Callable[[Event], None]) -> None:
        """Tell the certificates in use, and load those that change, for good."""
        for event in self.certificates.describe():
            emit(event)
        while True:
            now = self._services.clock.time()
            for event in await asyncio.to_thread(self.certificates.refresh, now):
                emit(event)
            await asyncio.sleep(LOOK)
