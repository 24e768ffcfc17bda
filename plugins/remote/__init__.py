"""remote: deliver to other hosts by SMTP. Replaces qmail-rspawn and qmail-remote.

Options: `routes` and `file` (control/smtproutes in qmail's syntax; inline wins), `helo` (control/helohost),
`tls`, `timeout_connect`, `timeout`, `timeout_final` (control/timeoutconnect, timeoutremote), `recipients`.

Mail goes to the hosts of the domain's route, else to its MX, else to its address; never back to this host,
unless a route says so. The first host that lets us say MAIL decides. Every recipient gets its own outcome.
`routes` is looked up at each attempt, so a changed route counts for mail that waits, too.

Events: the dispatcher tells `delivery.*` from the outcomes; `peer`, `reply` and `status` come from here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gateway import (
    Address,
    DialogueError,
    Duration,
    FileBody,
    Outcome,
    Plugin,
    Route,
    Section,
    hookimpl,
    own_addresses,
)
from gateway.smtp import Connection, Envelope, Timeouts, Verdict, opportunistic_tls

from .hosts import find_targets
from .idle import Idle
from .routes import Domain, Hop, Relay, find_hop, read_routes

if TYPE_CHECKING:
    from gateway import Context, Delivery, EntryRecipient, Recipient

#: Addresses of one domain that one attempt may try.
ADDRESSES = 10
#: A host gets this many seconds for a message, and a second more for each SLOWEST bytes: each wait has a
#: bound of its own, but a host could use up every one of them and keep others waiting.
LONGEST = 3600
SLOWEST = 1000


class Settings(Section):
    """Where mail for other hosts goes, and how patiently."""

    #: Domain, `.domain` for all below it, or "" for all others, to `host`, `host:port` or `{hosts: [...]}`,
    #: which are tried in order; "" as the host means the domain's MX.
    routes: dict[Domain, Relay] = {}
    #: A file of such routes, in the syntax of qmail's control/smtproutes.
    file: str = ""
    #: The name that we greet with; the gateway's hostname when empty.
    helo: str = Field(default="", pattern=r"^[!-~]*$")
    #: `may`: under TLS where the other host offers it, else in plain; `none`: always in plain.
    tls: Literal["may", "none"] = "may"
    #: How long a connection may take.
    timeout_connect: Duration = Field(default=60.0, gt=0)
    #: How long each reply, and each block of a message, may take.
    timeout: Duration = Field(default=300.0, gt=0)
    #: How long the reply to a whole message may take.
    timeout_final: Duration = Field(default=600.0, gt=0)
    #: Recipients in one transaction.
    recipients: int = Field(default=100, ge=1, le=1000)


class Remote(Plugin[Settings]):
    """Routes what nobody else has claimed, and delivers it by SMTP."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._routes = read_routes(self) | self.settings.routes
        self._idle = Idle()
        self._tls = opportunistic_tls() if self.settings.tls == "may" else None
        self._timeouts = Timeouts(
            self.settings.timeout_connect, self.settings.timeout, self.settings.timeout_final
        )

    @hookimpl
    def route(self, recipient: Recipient) -> Route:
        """Send on whatever has come this far."""
        hop = find_hop(self._routes, recipient.address)
        return Route("remote", "remote", destination=str(hop), rule=hop.rule)

    @hookimpl
    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Try each recipient, those with the same next hop in one transaction."""
        hops: dict[Hop, list[EntryRecipient]] = {}
        for recipient in delivery.recipients:
            hops.setdefault(find_hop(self._routes, recipient.recipient.address), []).append(recipient)
        outcomes: list[Outcome] = []
        for hop, recipients in hops.items():
            for start in range(0, len(recipients), self.settings.recipients):
                outcomes += await self._send(
                    hop, delivery, recipients[start : start + self.settings.recipients]
                )
        return outcomes

    @hookimpl
    def shutdown(self) -> None:
        """Let go of the connections that wait for more mail."""
        self._idle.close()

    async def _send(self, hop: Hop, delivery: Delivery, recipients: list[EntryRecipient]) -> list[Outcome]:
        envelope = _envelope(delivery, recipients)
        try:
            async with asyncio.timeout(LONGEST + delivery.entry.message.size / SLOWEST):
                verdicts, connection = await self._offer(hop, envelope, delivery)
        except TimeoutError:
            slow = Verdict(
                "deferred", "4.4.1", "it took too long altogether, perhaps it has the message all the same"
            )
            verdicts, connection = [slow] * len(recipients), None
        peer = str(connection.target) if connection else ""
        secure = bool(connection and connection.secure)
        return [
            _outcome(recipient.number, verdict, peer, secure=secure)
            for recipient, verdict in zip(recipients, verdicts, strict=True)
        ]

    async def _offer(
        self, hop: Hop, envelope: Envelope, delivery: Delivery
    ) -> tuple[list[Verdict], Connection | None]:
        """Offer the message to one host after the other until one of them decides."""
        while connection := self._idle.take(str(hop)):
            try:
                return await self._use(connection, hop, envelope, delivery), connection
            except DialogueError as error:
                self.log.debug("idle connection lost", peer=str(connection.target), error=str(error))
        found = await find_targets(self.dns, hop, own_addresses)
        if isinstance(found, Verdict):
            return [found] * len(envelope.recipients), None
        faults: list[str] = []
        status, reply = "4.4.1", ""
        for target in found[:ADDRESSES]:
            try:
                connection = await Connection.connect(
                    target, self.settings.helo or self.site.hostname, self._timeouts, self._tls
                )
                return await self._use(connection, hop, envelope, delivery), connection
            except DialogueError as error:
                faults.append(
                    f"{target}: {error}" + (f"\nThe host said: {error.reply}" if error.reply else "")
                )
                status, reply = error.status, error.reply
        verdict = Verdict("deferred", status, "\n".join(faults), reply)
        return [verdict] * len(envelope.recipients), None

    async def _use(
        self, connection: Connection, hop: Hop, envelope: Envelope, delivery: Delivery
    ) -> list[Verdict]:
        verdicts = await connection.send(envelope, delivery.entry.message)
        self._idle.put(str(hop), connection)
        return verdicts


def _envelope(delivery: Delivery, recipients: list[EntryRecipient]) -> Envelope:
    message = delivery.entry.message
    header = message.header.isascii()
    seven_bit = header and not isinstance(message.body, FileBody) and message.body.isascii()
    return Envelope(
        # qmail's mark of a double bounce means something to qmail alone.
        sender=Address("") if delivery.sender == "#@[]" else delivery.sender,
        recipients=[recipient.recipient.address for recipient in recipients],
        size=message.size,
        eight_bit=not seven_bit,
        international="SMTPUTF8" in delivery.entry.params and not header,
    )


def _outcome(number: int, verdict: Verdict, peer: str, *, secure: bool) -> Outcome:
    """Put into words what became of one recipient."""
    text = f"{peer}: {verdict.text}" if peer else verdict.text
    if secure and verdict.result == "delivered":
        text += " over TLS"
    if peer and verdict.reply:
        text += f"\nThe host said: {verdict.reply}"
    return Outcome(number, verdict.result, text, verdict.status, verdict.reply, peer)
