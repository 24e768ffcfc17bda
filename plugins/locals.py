"""locals: the domains whose mail is delivered here to accounts of the same name. Replaces control/locals.

Options: `domains`, `file` (control/locals, seen anew when it changes). Without either, the gateway's own
name is the one local domain.
Names are exact: a sub-domain is another domain.

It marks such recipients, so that `virtual_domains` leaves them alone, and routes what either of the two has
marked to `dot_qmail`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import Plugin, Route, Section, controls, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Context, Recipient


class Settings(Section):
    """Which domains are local."""

    #: Local domains; an empty list makes none local. Default: the gateway's own name, if there is no `file`.
    domains: list[Annotated[str, AfterValidator(lower)]] | None = None
    #: A file of such domains, in the syntax of qmail's control/locals.
    file: str = ""


class Locals(Plugin[Settings]):
    """Marks recipients of local domains, and routes all that is delivered here."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Domain -> where it stands.
        self._inline = {
            domain: str(self.place("domains", number) or self.stem)
            for number, domain in enumerate(self.settings.domains or ())
        }
        self._file = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            place = self.place("file")
            self._file = controls.ControlFile(path, controls.domain_table, "locals.file", place)
        elif self.settings.domains is None:
            self._inline = {lower(self.site.hostname): "gateway.hostname"}

    @hookimpl
    def rewrite(self, recipient: Recipient) -> Recipient | None:
        """Mark a recipient of a local domain."""
        domain = recipient.address.domain
        place = self._inline.get(domain)
        if place is None and self._file:
            place = self._file.get().get(domain)
        if place is None or recipient.claimed:
            return None
        return recipient.at(recipient.address, claimed="locals", rule=f"{place}: {domain}")

    @hookimpl
    def route(self, recipient: Recipient) -> Route | None:
        """Send what is local, or virtual here, to its account's `.qmail` files."""
        if recipient.claimed in ("locals", "virtual_domains"):
            return Route("dot_qmail", "local", rule=recipient.rule)
        return None
