"""What speaks the protocols of the listeners, and the certificates that they show."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway import milter, smtp
from gateway.answering import Answering
from gateway.authentication.login import Login, secret
from gateway.errors import ConfigError
from gateway.smtp.tls import Certificates, read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.events import Event
    from gateway.plugin import Services
    from gateway.reception import Reception
    from gateway.settings import Listener, Settings

#: Changed certificates are in use after this many seconds at most.
LOOK = 30.0


class Serving:
    """Makes the servers of one worker. What a reload brings counts for sessions that begin after it."""

    def __init__(self, services: Services, settings: Callable[[], Settings]) -> None:
        self._services = services
        self._settings = settings
        self._prepared: Certificates
        self._reception: Reception
        self._login: Login
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

    def switch(self) -> Certificates:
        """Use what was prepared."""
        self.certificates = self._prepared
        return self.certificates

    def begin(self, reception: Reception) -> None:
        """Be ready to make servers."""
        self._reception = reception
        own = secret(self._settings().gateway.state)
        self._login = Login(reception, self._services, lambda: self._settings().limits, own)

    def server(self, listener: Listener) -> smtp.Server | milter.Server:
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
