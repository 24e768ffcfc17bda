"""rcpthosts: take mail for our own domains. Replaces the rcpthosts test of qmail-smtpd.

Options: `domains`, `file` (control/rcpthosts) and `cdb` (control/morercpthosts.cdb), both seen anew when
they change; all count. `.example.org` stands for every domain below example.org, at any depth, and not for
example.org itself. Without any entry no domain is ours: unlike qmail, a missing list never opens the relay.
`localiphost` is the domain that stands in for `[192.0.2.1]`, of recipients and senders, where that is an
address of this host.

An address without a domain is local by definition and accepted. This plugin only
ever accepts: the refusal (553 5.7.1, reason `relay`) is what is said when nobody has accepted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import Accept, Plugin, Recipient, Section, controls, hookimpl, lower, own_addresses

if TYPE_CHECKING:
    from gateway import Context, Transaction

#: An address literal as qmail reads one: four numbers of any length (qmail spec 1.10).
_LITERAL = re.compile(r"(.*@)\[(\d+)\.(\d+)\.(\d+)\.(\d+)\]", re.DOTALL | re.ASCII)
_DOMAIN = re.compile(r"\.?[^\s@:.]+(?:\.[^\s@:.]+)*")


def _domain(text: str) -> str:
    if not _DOMAIN.fullmatch(text):
        raise ValueError(f"{text!r} is no domain: write example.org, or .example.org for all below it")
    return lower(text)


class Settings(Section):
    """Which domains are ours."""

    #: Domains that we take mail for; `.example.org` stands for all below example.org.
    domains: list[Annotated[str, AfterValidator(_domain)]] = []
    #: A file of such domains, in the syntax of qmail's control/rcpthosts.
    file: str = ""
    #: A cdb of such domains, as qmail-newmrh makes it.
    cdb: str = ""
    #: The domain that stands in for `[an address of this host]`; with "" such an address is nobody's.
    localiphost: str = ""


class Rcpthosts(Plugin[Settings]):
    """Accepts recipients in our own domains."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Entry -> where it stands.
        self._inline = {
            domain: str(self.place("domains", number) or self.stem)
            for number, domain in enumerate(self.settings.domains)
        }
        self._file = self._cdb = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            place = self.place("file")
            self._file = controls.ControlFile(path, controls.domain_table, "rcpthosts.file", place)
        if self.settings.cdb:
            path = self.site.base / self.settings.cdb
            self._cdb = controls.ControlFile(path, controls.domain_cdb, "rcpthosts.cdb", self.place("cdb"))

    @hookimpl
    def mail(self, transaction: Transaction) -> None:
        """Name the domain of a sender at an address of this host, as for a recipient."""
        renamed = self.rewrite(Recipient.of(transaction.sender))
        if renamed:
            transaction.sender = renamed.address

    @hookimpl
    def relay(self, recipient: Recipient) -> Accept | None:
        """Accept for one of our domains, and for an address without a domain."""
        renamed = self.rewrite(recipient)
        address = (renamed or recipient).address
        if "@" not in address:
            return Accept(rule="no domain")
        for key in controls.domain_keys(address.domain):
            if place := self._place_of(key):
                return Accept(recipient=renamed, rule=f"{place}: {key}")
        return None

    @hookimpl
    def rewrite(self, recipient: Recipient) -> Recipient | None:
        """Name the domain of a recipient at an address of this host; here too, as relay clients use it."""
        host = self.settings.localiphost
        match = _LITERAL.fullmatch(recipient.address) if host else None
        if match is None:
            return None
        ip = ".".join(str(int(number[-9:]) % 256) for number in match.groups()[1:])
        if ip != "0.0.0.0" and ip not in own_addresses():
            return None
        return recipient.at(match[1] + host, rule=f"{self.place('localiphost')}: [{ip}]")

    def _place_of(self, key: str) -> str | None:
        if place := self._inline.get(key):
            return place
        if self._file and (place := self._file.get().get(key)):
            return place
        found = self._cdb.get().get(key.encode("utf-8", "surrogateescape")) if self._cdb else None
        return None if found is None else self.settings.cdb
