"""virtual_domains: give whole domains, or single addresses, to accounts. Replaces control/virtualdomains.

Options: `domains` (a mapping of key to account) and `file` (control/virtualdomains, seen anew
when it changes). Keys, the nearest wins:
`joe@example.org` (one address), `example.org` (a domain), `.example.org` (all below it, at any depth),
`""` (everything else that is not local). An empty value takes the key out again: such mail goes to remote.

`info@example.org` with `example.org: abc` becomes `abc-info@example.org`; that `-` never changes. What
`locals` has marked is left alone, so a domain in both is local.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import Plugin, Section, controls, hookimpl, lower

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway import Address, Context, Recipient


class Settings(Section):
    """Which domains belong to whom."""

    #: Key to account: `example.org: abc`, `joe@example.com: joe`, `.example.net: net`, `"": catchall`.
    domains: dict[str, str] = {}
    #: A file of `key:account` lines, in the syntax of qmail's control/virtualdomains.
    file: str = ""


class VirtualDomains(Plugin[Settings]):
    """Puts an account's name in front of the recipients that belong to it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Key -> (account, where it stands).
        self._inline = {
            lower(key): (account, str(self.place("domains", key) or self.stem))
            for key, account in self.settings.domains.items()
        }
        self._file = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            place = self.place("file")
            self._file = controls.ControlFile(path, controls.account_table, "virtual_domains.file", place)

    @hookimpl
    def rewrite(self, recipient: Recipient) -> Recipient | None:
        """Give the recipient to the account of the nearest key."""
        if recipient.claimed:
            return None
        in_file = self._file.get() if self._file else {}
        for key in keys(recipient.address):
            account, place = self._inline.get(key) or in_file.get(key) or (None, "")
            if account:
                rule = f"{place}: {key or '(everything else)'} -> {account}"
                return recipient.at(f"{account}-{recipient.address}", claimed="virtual_domains", rule=rule)
            if account == "":
                return recipient.at(recipient.address, rule=f"{place}: {key} is an exception")
        return None


def keys(address: Address) -> Iterator[str]:
    """Give the keys to probe, the nearest first (spec 1.7)."""
    yield lower(address)
    yield from controls.domain_keys(address.domain)
    if address.domain:
        yield ""
