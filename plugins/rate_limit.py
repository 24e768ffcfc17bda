"""rate_limit: so much mail in so much time, of one client, one login, one sender's domain. New.

Counted are messages (at their first recipient) and recipients, over all workers. Who has logged in counts by
its login, others by address, IPv6 by its /64; the sender's domain counts for both. Networks in `exempt` are
not counted, nor clients that `relay_control` lets send to anywhere, unless `relay_clients` says so.

Options: `client`, `user`, `domain` (each with `messages` and `recipients`), `exempt`, `relay_clients`.
Over a limit a recipient is told 450 4.7.1, with the reason `rate_limit` and the event `limit.exceeded`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

from gateway import Block, Defer, Network, Plugin, Rate, Section, events, hookimpl, lower, parse_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway import Recipient, Session, Transaction


class Rates(Block):
    """How much of each; without a rate there is no limit."""

    #: Messages: `100/h`.
    messages: Rate | None = None
    #: Recipients, of all messages together: `10/s`, `1000/d`.
    recipients: Rate | None = None


class Settings(Section):
    """How often."""

    #: Of one client address that has not logged in.
    client: Rates = Rates()
    #: Of one login.
    user: Rates = Rates()
    #: Of all senders of one domain.
    domain: Rates = Rates()
    #: Networks whose clients are not counted.
    exempt: list[Annotated[Network, BeforeValidator(parse_network)]] = [
        parse_network("127.0.0.0/8"),
        parse_network("::1"),
    ]
    #: Count clients that may relay, too.
    relay_clients: bool = False


class Seen(set[str]):
    """The recipients of a transaction that nobody has let pass before this plugin was asked."""

    counted = False


class RateLimit(Plugin[Settings]):
    """Counts mail."""

    @hookimpl
    def relay(self, transaction: Transaction, recipient: Recipient) -> None:
        """Note that this client may not send to anywhere: `relay_control` stands before, and was silent."""
        self.state(transaction, Seen).add(recipient.original)

    @hookimpl
    async def rcpt(self, transaction: Transaction, recipient: Recipient) -> Defer | None:
        """Count this recipient, and with the first one the message."""
        session = transaction.session
        if session is None or self._is_exempt(session):
            return None
        seen = self.state(transaction, Seen)
        if not (session.user or self.settings.relay_clients or recipient.original in seen):
            return None
        first, seen.counted = not seen.counted, True
        for name, key, rate in self._limits(transaction, session, first=first):
            if await self.counters.hit(f"rate_limit:{key}", rate.window) > rate.limit:
                return self._defer(session, name, rate.limit)
        return None

    def _limits(
        self, transaction: Transaction, session: Session, *, first: bool
    ) -> Iterator[tuple[str, str, Rate]]:
        """Give what counts: the setting, who is counted, how much it may be."""
        who = f"user:{lower(session.user)}" if session.user else f"client:{session.client.prefix}"
        rates = self.settings.user if session.user else self.settings.client
        of = [(who, rates), (f"domain:{transaction.sender.domain}", self.settings.domain)]
        for key, its in of if transaction.sender else of[:1]:
            kind = key.partition(":")[0]
            if first and its.messages:
                yield f"{kind}.messages", f"messages:{key}", its.messages
            if its.recipients:
                yield f"{kind}.recipients", f"recipients:{key}", its.recipients

    def _is_exempt(self, session: Session) -> bool:
        try:
            ip = ipaddress.ip_address(session.client.ip)
        except ValueError:
            return True
        return any(ip in network for network in self.settings.exempt)

    def _defer(self, session: Session, name: str, allowed: int) -> Defer:
        decision = Defer("4.7.1", "too much mail in this time, try again later", reason="rate_limit")
        event = events.LimitExceeded(
            session=session.id,
            client_ip=session.client.ip,
            listener=session.listener,
            user=session.user,
            plugin=self.stem,
            reply=f"{decision.status} {decision.text}",
            limit=name,
            allowed=allowed,
        )
        self.emit(event)
        return decision
