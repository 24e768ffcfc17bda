"""relay_control: which clients may connect, and which may send to anywhere.

Replaces tcpserver's rules with RELAYCLIENT and DATABYTES.

Options: `clients` (networks, forward-confirmed host names, or either with limits of their own), `rules`
(a file of tcprules, source or cdb, seen anew when it changes), `logins` and `certificates`. By default only
clients that have logged in may relay. A deny in the rules wins over everything. A client's name is looked up
only when an entry needs it, and any doubt about it means no relay.

Refusals have the reason `denied` (by the rules), `dns` (a rule needs a name that cannot be looked up now) or
`rate` (over `max_rate`). Where this plugin has no opinion, the others of the stage decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

from gateway import Accept, Defer, DnsTemporary, Plugin, Reject, Section, controls, hookimpl, lower

from .clients import Client, plain_ip
from .tcprules import Rule, Rules

if TYPE_CHECKING:
    from gateway import Context, Recipient, Session, Transaction

#: Variables of a rule that mean something here.
USED = frozenset({"RELAYCLIENT", "DATABYTES"})


def _fingerprint(value: object) -> str:
    text = str(value).upper()
    if not re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", text):
        raise ValueError("should be what `openssl x509 -noout -fingerprint -sha256` prints behind the `=`")
    return text


Fingerprint = Annotated[str, BeforeValidator(_fingerprint)]


class Settings(Section):
    """Who may relay."""

    #: Who may send to anywhere: networks, host names, or `{networks: [...], hosts: [...], senders: [...]}`.
    clients: list[Client] = []
    #: A file of tcpserver rules: the source that tcprules reads, or the cdb that it makes.
    rules: str = ""
    #: Clients that have logged in may send to anywhere.
    logins: bool = True
    #: Fingerprints (SHA-256) of client certificates that may; `tls.client_ca` must know their authority.
    certificates: list[Fingerprint] = []


@dataclass(slots=True)
class Known:
    """What was found out about a session's client."""

    #: None before anybody asked; "" when there is no name, or doubt about it.
    name: str | None = None
    doubt: bool = False


class RelayControl(Plugin[Settings]):
    """Who may connect, and who may relay."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._file = None
        if self.settings.rules:
            path = self.site.base / self.settings.rules
            place = self.place("rules")
            self._file = controls.ControlFile(path, Rules.parse, "relay_control.rules", place)
            self._warn(self._file.get())

    @hookimpl
    async def connect(self, session: Session) -> Reject | Defer | None:
        """Turn away whom the rules deny; DATABYTES sets the size limit of the session."""
        rule = await self._rule(session)
        if rule is None:
            return None
        if not rule.allow:
            return _denied(rule, doubt=self.state(session, Known).doubt)
        size = rule.value("DATABYTES")
        if size is not None:
            session.message_size = _leading_number(size)
        return None

    @hookimpl
    async def relay(self, transaction: Transaction, recipient: Recipient) -> Accept | Reject | Defer | None:
        """Accept for a client with RELAYCLIENT in its rule, and for one that `clients` names."""
        session = transaction.session
        if session is None:
            return None
        rule = await self._rule(session)
        if rule is not None and not rule.allow:
            return _denied(rule, doubt=self.state(session, Known).doubt)
        suffix = rule.value("RELAYCLIENT") if rule else None
        if rule is None or suffix is None:
            return self._by_proof(session) or await self._by_clients(transaction, session, recipient)
        # The value is appended as it stands (qmail spec 2.3), so that a fixup domain can take the mail over.
        renamed = recipient.at(f"{recipient.address}{suffix}", rule=str(rule.place)) if suffix else None
        return Accept(recipient=renamed, rule=str(rule.place))

    def _warn(self, rules: Rules) -> None:
        for rule in rules:
            for name in {name for name, _ in rule.variables} - USED:
                self.log.warning("variable without effect", variable=name, rule=str(rule.place))

    async def _rule(self, session: Session) -> Rule | None:
        """Find the rule for a client; a session that is not from the network has none."""
        ip = plain_ip(session.client.ip)
        if ip is None or self._file is None:
            return None
        rules = self._file.get()
        name = await self._name(session) if rules.wants_name(str(ip)) else ""
        return rules.find(str(ip), name or None)

    def _by_proof(self, session: Session) -> Accept | None:
        """Accept who has proved who he is."""
        if session.user and self.settings.logins:
            return Accept(rule=str(self.place("logins") or "relay_control.logins"))
        if session.certificate in self.settings.certificates:
            return Accept(rule=str(self.place("certificates")))
        return None

    async def _by_clients(
        self, transaction: Transaction, session: Session, recipient: Recipient
    ) -> Accept | Defer | None:
        for number, client in enumerate(self.settings.clients):
            permitted = client.permits(transaction.sender, recipient.address)
            if permitted and await self._is_one_of(session, client):
                return await self._within_rate(
                    session, client, str(self.place("clients", number) or "clients")
                )
        return None

    async def _is_one_of(self, session: Session, client: Client) -> bool:
        ip = plain_ip(session.client.ip)
        if ip is None:
            return False
        return client.has_address(ip) or (bool(client.hosts) and client.has_name(await self._name(session)))

    async def _within_rate(self, session: Session, client: Client, rule: str) -> Accept | Defer:
        if client.max_rate is not None:
            key = f"relay_control:{plain_ip(session.client.ip)}"
            if await self.counters.hit(key, client.max_rate.window) > client.max_rate.limit:
                return Defer("4.7.1", "too many recipients, try again later", reason="rate", rule=rule)
        return Accept(rule=rule)

    async def _name(self, session: Session) -> str:
        """Give the client's forward-confirmed name in lower case, "" when it has none or DNS is in doubt."""
        known = self.state(session, Known)
        if known.name is None:
            try:
                name = session.client.name or await self.dns.confirmed_name(str(plain_ip(session.client.ip)))
            except DnsTemporary:
                name, known.doubt = "", True
            known.name = session.client.name = lower(name)
        return known.name


def _denied(rule: Rule, *, doubt: bool) -> Reject | Defer:
    if doubt:
        text = "the name of your host cannot be looked up now, try again later"
        return Defer("4.7.1", text, reason="dns", rule=str(rule.place))
    return Reject("5.7.1", "mail from your host is not accepted here", reason="denied", rule=str(rule.place))


def _leading_number(text: str) -> int:
    """Read a number as qmail does: the digits at the start, 0 when there are none."""
    digits = re.match(r"[0-9]{0,18}", text)
    return int(digits[0] or 0) if digits else 0
