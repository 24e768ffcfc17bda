"""badmailfrom: refuse mail from unwanted senders. Replaces the badmailfrom test of qmail-smtpd.

Options: `senders`, and `file` (control/badmailfrom, seen anew when it changes); both count. An entry is a
full address, or `@example.org` for every sender at exactly that domain. As in qmail, MAIL is answered with
yes and each recipient is refused, and the right to relay does not lift it. The null sender cannot be listed:
bounces must get through.

Refusals are 553 5.7.1 with the reason `bad_sender`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import Plugin, Reject, Section, controls, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Address, Context, Transaction


def _sender(text: str) -> str:
    if not re.fullmatch(r".*@[^\s@]+", text):
        raise ValueError(
            f"{text!r} is no sender: write joe@example.org, or @example.org for the whole domain"
        )
    return lower(text)


class Settings(Section):
    """Who is unwanted."""

    #: Senders to refuse: addresses, or `@example.org` for all of a domain.
    senders: list[Annotated[str, AfterValidator(_sender)]] = []
    #: A file of such senders, in the syntax of qmail's control/badmailfrom.
    file: str = ""


class Badmailfrom(Plugin[Settings]):
    """Refuses every recipient of mail from an unwanted sender."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Entry -> where it stands.
        self._inline = {
            sender: str(self.place("senders", number) or self.stem)
            for number, sender in enumerate(self.settings.senders)
        }
        self._file = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            place = self.place("file")
            self._file = controls.ControlFile(path, controls.domain_table, "badmailfrom.file", place)

    @hookimpl
    def rcpt(self, transaction: Transaction) -> Reject | None:
        """Refuse when the sender, or its domain, is listed."""
        for key in _keys(transaction.sender):
            if place := self._place_of(key):
                text = "mail from this sender is not accepted here"
                return Reject("5.7.1", text, reason="bad_sender", rule=f"{place}: {key}")
        return None

    def _place_of(self, key: str) -> str | None:
        place = self._inline.get(key)
        return place if place or not self._file else self._file.get().get(key)


def _keys(sender: Address) -> tuple[str, ...]:
    """Give what qmail looks for: the whole address, then `@` and its domain."""
    return (lower(sender), f"@{sender.domain}") if "@" in sender else (lower(sender),)
