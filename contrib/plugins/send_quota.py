"""send_quota: so many recipients an hour or a day for each user, or for each client without a login.

What is over the quota is deferred at DATA, so that a program tries again later and a person sees why; it is
not counted. Only clients in `clients` and users who have logged in have a quota: mail from strangers is for
other rules. Mail born here (bounces, forwards) never counts.

    send_quota:
      recipients: 500
      window: 1d
      clients: [10.0.0.0/8]
      users: {newsletter: 20000}

Refusals are 450 4.7.1 with the reason `quota`. The counters start from zero with the gateway.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PlainSerializer, PlainValidator

from gateway import Defer, Duration, Plugin, Section, hookimpl, parse_network
from gateway import Network as AnyNetwork

if TYPE_CHECKING:
    from gateway import Session, Transaction

Network = Annotated[AnyNetwork, PlainValidator(parse_network), PlainSerializer(str)]


class Settings(Section):
    """How much, for whom."""

    #: Recipients that one user or client may send to in a window.
    recipients: int = Field(default=500, gt=0)
    #: The time that is looked back.
    window: Duration = Field(default=86400.0, gt=0)
    #: Users with a quota of their own.
    users: dict[str, int] = {}
    #: Networks whose clients have a quota, each address its own.
    clients: list[Network] = []


class SendQuota(Plugin[Settings]):
    """Counts at DATA, when the recipients are complete."""

    @hookimpl
    async def data(self, transaction: Transaction) -> Defer | None:
        """Count the recipients, or defer when they would be too many."""
        session = transaction.session
        who = self._who(session) if session else ""
        if not who:
            return None
        count = len(transaction.recipients)
        key, window = f"{self.stem}/{who}", self.settings.window
        allowed = self.settings.users.get(session.user if session else "", self.settings.recipients)
        if await self.counters.hit(key, window, 0) + count > allowed:
            return Defer("4.7.1", "sending quota exceeded, try again later", reason="quota", rule=who)
        await self.counters.hit(key, window, count)
        return None

    def _who(self, session: Session) -> str:
        if session.user:
            return f"user {session.user}"
        try:
            ip = ipaddress.ip_address(session.client.ip)
        except ValueError:  # a Unix socket has no address
            return ""
        listed = any(ip in network for network in self.settings.clients if network.version == ip.version)
        return f"client {ip}" if listed else ""
