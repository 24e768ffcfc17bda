"""remote: deliver to other hosts by SMTP or LMTP. Replaces qmail-rspawn and qmail-remote.

Options: `routes` and `file` (control/smtproutes in qmail's syntax; inline wins), `senders`, `helo`
(control/helohost), `tls`, `ca_file`, `source`, `timeout_connect`, `timeout`, `timeout_final`
(control/timeoutconnect, timeoutremote), `recipients`.

Mail goes to the hosts of the domain's route, else of the sender's, else to its MX, else to its address; never
back to this host, unless a route says so. The first host that lets us say MAIL decides. Every recipient gets
its own outcome. Routes and policies are looked up at each attempt, so changes count for mail that waits.

Events: `tls.established`, `tls.failed`. The dispatcher tells `delivery.*` from the outcomes; `peer`, `reply`
and `status` come from here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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
from gateway.smtp import Envelope, Timeouts, Verdict

from .backoff import Backoff
from .connecting import Connector
from .hosts import find_targets
from .idle import Idle
from .mta_sts import MtaSts
from .relay import Domain, Policy, Relay, Sender, Source
from .routes import Hop, Routes, read_routes
from .seven_bit import Unconvertible, in_seven_bits
from .tls import Guard

if TYPE_CHECKING:
    from gateway import Context, Delivery, EntryRecipient, Message, Place, Recipient
    from gateway.smtp import Connection

#: Addresses of one domain that one attempt may try.
ADDRESSES = 10
#: A host gets this many seconds for a message, and a second more for each SLOWEST bytes: each wait has a
#: bound of its own, but a host could use up every one of them and keep others waiting.
LONGEST = 3600
SLOWEST = 1000


def _for_all(value: Any) -> Any:
    return {"": value} if isinstance(value, str) else value


class Settings(Section):
    """Where mail for other hosts goes, and how patiently."""

    #: Domain, `.domain` for all below it, or "" for all others, to `host`, `host:port`, `lmtp:host`,
    #: `lmtp:unix:/path` or `{hosts: [...]}`, which are tried in order; "" as the host means the domain's MX.
    routes: dict[Domain, Relay] = {}
    #: A file of such routes, in the syntax of qmail's control/smtproutes.
    file: str = ""
    #: Sender (`ann@example.org`, `example.org`, `.example.org`) to hosts, for domains without a route; the
    #: route "" counts after these.
    senders: dict[Sender, Relay] = {}
    #: The name that we greet with; the gateway's hostname when empty.
    helo: str = Field(default="", pattern=r"^[!-~]*$")
    #: What TLS has to be like, for all or by domain: `none`, `may` (where it is offered), `encrypt`,
    #: `verify`, `dane`, `mta-sts`. What is not named is `may`.
    tls: Annotated[dict[Domain, Policy], BeforeValidator(_for_all)] = {}
    #: Authorities whose certificates count, in PEM; those of the system when empty.
    ca_file: str = ""
    #: Our addresses to connect from, one for each family.
    source: list[Source] = []
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
        settings = self.settings
        self._in_file = {key: found for key, found in read_routes(self).items() if key not in settings.routes}
        routes = {key: relay for key, (relay, _) in self._in_file.items()} | settings.routes
        self._routes = Routes(routes, settings.senders, settings.tls, settings.source, self._rule)
        self._idle = Idle()
        authorities = str(self.site.base / settings.ca_file) if settings.ca_file else ""
        guard = Guard(self.dns, self.clock, authorities)
        folder = self.site.state / self.stem / "mta-sts"
        self._connector = Connector(
            settings.helo or self.site.hostname,
            Timeouts(settings.timeout_connect, settings.timeout, settings.timeout_final),
            guard,
            MtaSts(self.dns, self.clock, lambda: guard.authorities, folder),
            Backoff(self.counters, self.clock),
            self.emit,
        )

    @hookimpl
    def startup(self) -> None:
        """Tell of a policy that cannot do all it says."""
        settings = self.settings
        relays = (*settings.routes.values(), *settings.senders.values())
        if {"dane", "mta-sts"} & {*settings.tls.values(), *(relay.tls for relay in relays)} and (
            not self.dns.validates
        ):
            self.log.warning("no resolver on this host validates DNSSEC, so that no host is known by DANE")

    @hookimpl
    def route(self, recipient: Recipient, sender: Address) -> Route:
        """Send on whatever has come this far."""
        hop = self._routes.hop(recipient.address, sender)
        return Route("remote", "remote", destination=str(hop), rule=hop.rule)

    @hookimpl
    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Try each recipient, those with the same next hop in one transaction."""
        hops: dict[Hop, list[EntryRecipient]] = {}
        lenient = _is_lenient(delivery)
        for recipient in delivery.recipients:
            hop = self._routes.hop(recipient.recipient.address, delivery.sender)
            hops.setdefault(hop.lenient if lenient else hop, []).append(recipient)
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

    def _rule(self, table: str, key: str) -> Place | None:
        """Give where a route stands."""
        in_file = self._in_file.get(key) if table == "routes" else None
        return in_file[1] if in_file else self.place(table, key)

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
        return [
            _outcome(recipient.number, verdict, connection)
            for recipient, verdict in zip(recipients, verdicts, strict=True)
        ]

    async def _offer(
        self, hop: Hop, envelope: Envelope, delivery: Delivery
    ) -> tuple[list[Verdict], Connection | None]:
        """Offer the message to one host after the other until one of them decides."""
        # A connection that waits may have been made on terms that are too weak for REQUIRETLS.
        while not envelope.require_tls and (connection := self._idle.take(hop)):
            try:
                return await self._use(connection, hop, envelope, delivery), connection
            except DialogueError as error:
                self.log.debug("idle connection lost", peer=str(connection.target), error=str(error))
        found = await find_targets(self.dns, hop, own_addresses)
        if isinstance(found, Verdict):
            return [found] * len(envelope.recipients), None
        sts = await self._connector.policy(hop, strict=envelope.require_tls)
        faults: list[tuple[str, DialogueError]] = []
        for candidate in found[:ADDRESSES]:
            try:
                connection = await self._connector.connect(hop, candidate, sts, strict=envelope.require_tls)
                return await self._use(connection, hop, envelope, delivery), connection
            except DialogueError as error:
                faults.append((str(candidate.target), error))
        return [_nobody(faults)] * len(envelope.recipients), None

    async def _use(
        self, connection: Connection, hop: Hop, envelope: Envelope, delivery: Delivery
    ) -> list[Verdict]:
        message = delivery.entry.message
        if envelope.eight_bit and not connection.offers("8BITMIME"):
            message = await _in_seven_bits(connection, message)
        verdicts = await connection.send(envelope, message)
        self._idle.put(hop, connection)
        return verdicts


async def _in_seven_bits(connection: Connection, message: Message) -> Message:
    """Convert for this host. Raises DialogueError where that cannot be: another host may take it as it is."""
    try:
        return await asyncio.to_thread(in_seven_bits, message)
    except Unconvertible as error:
        connection.quit()
        raise DialogueError(
            f"it takes no 8-bit text (8BITMIME), and {error}, so the message cannot be converted", "5.6.3"
        ) from error
    except OSError as error:
        connection.quit()
        raise DialogueError("the message could not be read here", "4.3.0") from error


def _nobody(faults: list[tuple[str, DialogueError]]) -> Verdict:
    """Say why no host would do: for now, unless each one's reason is for good."""
    lines = [
        f"{peer}: {error}" + (f"\nThe host said: {error.reply}" if error.reply else "")
        for peer, error in faults
    ]
    passing = [error for _, error in faults if error.status.startswith("4")]
    last = (passing or [error for _, error in faults])[-1]
    return Verdict("deferred" if passing else "failed", last.status, "\n".join(lines), last.reply)


def _is_lenient(delivery: Delivery) -> bool:
    """Whether the sender has said that TLS matters less than arrival; REQUIRETLS counts for more."""
    said = [value.lower() for value in delivery.entry.message.values("TLS-Required")]
    return said == ["no"] and "REQUIRETLS" not in delivery.entry.params


def _envelope(delivery: Delivery, recipients: list[EntryRecipient]) -> Envelope:
    message = delivery.entry.message
    header = message.header.isascii()
    seven_bit = header and not isinstance(message.body, FileBody) and message.body.isascii()
    params = delivery.entry.params
    return Envelope(
        # qmail's mark of a double bounce means something to qmail alone.
        sender=Address("") if delivery.sender == "#@[]" else delivery.sender,
        recipients=[recipient.recipient.address for recipient in recipients],
        size=message.size,
        eight_bit=not seven_bit,
        international="SMTPUTF8" in params and not header,
        # A bounce goes on without it: it would be lost else (RFC 8689 section 5).
        require_tls="REQUIRETLS" in params and delivery.sender not in ("", "#@[]"),
        params=params,
        rcpt_params=[recipient.recipient.params for recipient in recipients],
    )


def _outcome(number: int, verdict: Verdict, connection: Connection | None) -> Outcome:
    """Put into words what became of one recipient."""
    text, peer = verdict.text, ""
    handed: Literal["", "relayed", "passed"] = ""
    if connection:
        peer = str(connection.target)
        text = f"{peer}: {text}"
        if verdict.result == "delivered":
            text += " over TLS" if connection.secure else ""
            # Behind LMTP there is no further host.
            handed = "passed" if connection.offers("DSN") else "" if connection.target.lmtp else "relayed"
        if verdict.reply:
            text += f"\nThe host said: {verdict.reply}"
    return Outcome(number, verdict.result, text, verdict.status, verdict.reply, peer, handed=handed)
