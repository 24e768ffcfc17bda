"""percenthack: unwrap `user%host@domain`, and complete addresses without `@`. Replaces qmail-send's own.

Options: `domains`, `file` (control/percenthack, seen anew when it changes), `envnoathost`. Leave the list
empty unless old senders need it: what is unwrapped may point anywhere.

A recipient without `@` gets `@` and `envnoathost` first (qmail spec 5.1), also when no domain is listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import Plugin, Section, controls, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Context, Recipient


class Settings(Section):
    """For which domains `%` is a second `@`."""

    #: Domains whose local parts are unwrapped; exact names only.
    domains: list[Annotated[str, AfterValidator(lower)]] = []
    #: A file of such domains, in the syntax of qmail's control/percenthack.
    file: str = ""
    #: The domain of recipients that have none; "" stands for the gateway's own name.
    envnoathost: str = ""


class Percenthack(Plugin[Settings]):
    """Completes and unwraps recipients before any other plugin looks at them."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Domain -> where it stands.
        self._inline = {
            domain: str(self.place("domains", number) or self.stem)
            for number, domain in enumerate(self.settings.domains)
        }
        self._file = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            place = self.place("file")
            self._file = controls.ControlFile(path, controls.domain_table, "percenthack.file", place)

    @hookimpl
    def rewrite(self, recipient: Recipient) -> Recipient | None:
        """Give the recipient with a domain, and with every listed domain unwrapped."""
        address, rule = str(recipient.address), ""
        if "@" not in address:
            address = f"{address}@{self.settings.envnoathost or self.site.hostname}"
            rule = f"{self.place('envnoathost') or 'the default of envnoathost'}: no @"
        domains = self._inline | (self._file.get() if self._file else {})
        address, unwrapped = unwrap(address, domains)
        return recipient.at(address, rule=unwrapped or rule) if unwrapped or rule else None


def unwrap(address: str, domains: dict[str, str]) -> tuple[str, str]:
    """Apply the hack while the domain is listed (spec 1.6): the address, and the last rule, "" for none."""
    rule = ""
    while True:
        local, _, domain = address.rpartition("@")
        place = domains.get(lower(domain))
        if place is None or "%" not in local:
            return address, rule
        user, _, host = local.rpartition("%")
        address, rule = f"{user}@{host}", f"{place}: {lower(domain)}"
