"""`when:`: which mail a plugin, or a filter of one, is for. What it is not for, it is not asked about."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from gateway.address import lower
from gateway.settings.options import Block
from gateway.settings.units import IpNetwork  # noqa: TC001 - pydantic reads it at run time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.envelope import Entry, Recipient, Session, Transaction
    from gateway.events import Event
    from gateway.hookspecs import Spec

#: What is known of a client.
CLIENT = frozenset({"listener", "authenticated", "networks"})
DOMAINS = frozenset({"domains"})
#: The plugin is asked by name there, because the route names it; `when` has counted at `route`.
NAMED = frozenset({"exists", "deliver"})


class When(Block):
    """Conditions that must all be met; of a list, one entry is enough."""

    #: Names of listeners.
    listener: Annotated[list[str], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)] = []
    #: Only clients that have logged in, or only those that have not.
    authenticated: bool | None = None
    #: Networks that the client is in.
    networks: list[IpNetwork] = []
    #: Domains of the recipient, as the client gave it, or of any recipient where the stage has all;
    #: `.example.org` stands for all below example.org.
    domains: list[
        Annotated[str, BeforeValidator(lambda one: lower(one) if isinstance(one, str) else one)]
    ] = []

    @property
    def keys(self) -> list[str]:
        """The conditions that are given."""
        return [name for name in type(self).model_fields if getattr(self, name) not in ([], None)]

    def concerns(self, mail: Mail) -> bool:
        """Tell whether this is such mail."""
        if self.listener and mail.listener not in self.listener:
            return False
        if self.authenticated is not None and self.authenticated != bool(mail.user):
            return False
        if self.networks and not _inside(mail.ip, self.networks):
            return False
        return not self.domains or any(_among(one, self.domains) for one in mail.domains)


@dataclass(frozen=True, slots=True)
class Mail:
    """What the conditions are about. Mail that was born here has no listener, no login and no network."""

    listener: str = ""
    user: str = ""
    ip: str = ""
    domains: tuple[str, ...] = ()


def test_of(when: When, spec: Spec) -> Callable[..., bool] | None:
    """Give what tells for the arguments of a stage whether a call counts; None when every call does.

    What an observer cannot know does not count, since it may have something to put in order there.
    """
    if not when.keys or spec.kind == "life" or spec.name in NAMED:
        return None
    if spec.kind == "observe":
        when = When.model_construct(**{key: getattr(when, key) for key in when.keys if key in known(spec)})
    reader = _READERS[spec.arguments[:2] if spec.arguments[-1:] == ("recipient",) else spec.arguments[:1]]
    return lambda *args: when.concerns(reader(*args))


def known(spec: Spec) -> frozenset[str]:
    """Give the conditions that can be told at a stage."""
    if spec.kind == "life" or spec.name in NAMED:
        return CLIENT | DOMAINS
    if spec.arguments[:1] in (("recipient",), ("local_part",)):
        return DOMAINS
    if spec.arguments[:1] == ("session",) or spec.name == "mail":
        return CLIENT
    return CLIENT | DOMAINS if spec.arguments else frozenset()


def mail_of(transaction: Transaction, *_: Any) -> Mail:
    """Read a transaction with all its recipients."""
    return _of_client(transaction.session, _domains(transaction.recipients))


def _of_client(session: Session | None, domains: tuple[str, ...] = ()) -> Mail:
    if session is None:
        return Mail(domains=domains)
    return Mail(session.listener, session.user, session.client.ip, domains)


def _of_facts(facts: Mapping[str, str], domains: tuple[str, ...]) -> Mail:
    return Mail(facts.get("listener", ""), facts.get("user", ""), facts.get("client_ip", ""), domains)


def _of_entry(entry: Entry, *_: Any) -> Mail:
    return _of_facts(entry.facts, _domains(one.recipient for one in entry.recipients))


def _of_event(event: Event) -> Mail:
    domain = lower(event.recipient.rpartition("@")[2])
    return Mail(event.listener, event.user, event.client_ip, (domain,))


#: First arguments of a stage -> what reads them.
_READERS: dict[tuple[str, ...], Callable[..., Mail]] = {
    ("session",): lambda session, *_: _of_client(session),
    ("transaction",): mail_of,
    ("transaction", "recipient"): lambda transaction, one: _of_client(transaction.session, _domains([one])),
    ("recipient",): lambda one, *_: Mail(domains=_domains([one])),
    ("local_part",): lambda _, domain: Mail(domains=(domain,)),
    ("entry",): _of_entry,
    ("delivery",): lambda delivery, *_: _of_facts(
        delivery.entry.facts, _domains(one.recipient for one in delivery.recipients)
    ),
    ("event",): _of_event,
}


def _domains(recipients: Iterable[Recipient]) -> tuple[str, ...]:
    return tuple({one.original.domain for one in recipients})


def _among(domain: str, wanted: Iterable[str]) -> bool:
    return any(domain.endswith(one) if one.startswith(".") else domain == one for one in wanted)


def _inside(ip: str, networks: Iterable[Any]) -> bool:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    return any(address in network for network in networks)
