"""rcpthosts: take mail for our own domains. Replaces the rcpthosts test of qmail-smtpd.

Options: `domains`, and `file` (control/rcpthosts, seen anew when it changes); both count. `.example.org`
stands for every domain below example.org, at any depth, and not for example.org itself. Without any entry
no domain is ours: unlike qmail, a missing list never opens the relay.

An address without a domain is local by definition and accepted; the empty address is not. This plugin only
ever accepts: the refusal (553 5.7.1, reason `relay`) is what is said when nobody has accepted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import Accept, Plugin, Section, controls, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Context, Recipient

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


class Rcpthosts(Plugin[Settings]):
    """Accepts recipients in our own domains."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Entry -> where it stands.
        self._inline = {
            domain: str(self.place("domains", number) or self.stem)
            for number, domain in enumerate(self.settings.domains)
        }
        self._file = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            place = self.place("file")
            self._file = controls.ControlFile(path, controls.domain_table, "rcpthosts.file", place)

    @hookimpl
    def relay(self, recipient: Recipient) -> Accept | None:
        """Accept for one of our domains, and for an address without a domain."""
        address = recipient.address
        if "@" not in address:
            return Accept(rule="no domain") if address else None
        for key in controls.domain_keys(address.domain):
            if place := self._place_of(key):
                return Accept(rule=f"{place}: {key}")
        return None

    def _place_of(self, key: str) -> str | None:
        place = self._inline.get(key)
        return place if place or not self._file else self._file.get().get(key)
