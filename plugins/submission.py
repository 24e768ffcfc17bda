"""submission: our own users' mail goes out under their own addresses, and with a whole header. New.

Who has logged in may send from: the login itself, when it is an address; else the login at one of `domains`;
the null sender; and what `senders` adds. With `extensions` also from each of its own with an extension behind
it (`joe-list@example.org`), which qmail gives to joe; not by default, since nobody can be asked whether it is
another login's own. At listeners with `protocol: submission` a missing Date and Message-ID are put in, so
that no other host has to (RFC 6409 section 8). qmail-inject did that for local mail.

Options: `match`, `domains`, `extensions`, `senders`.
Refusals are 553 5.7.1 at MAIL with the reason `sender_login`, the event `sender.refused`.
"""

from __future__ import annotations

from email.utils import format_datetime
from typing import TYPE_CHECKING

from gateway import Plugin, Reject, Section, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Address, Message, Transaction


class Settings(Section):
    """Whose address is whose."""

    #: Refuse senders that are not the login's own.
    match: bool = True
    #: Domains in which a login without a domain owns its name; `gateway.hostname` when empty.
    domains: list[str] = []
    #: A login owns `NAME-ANYTHING`, too. Not where another login may have such a name: `sales` could then
    #: send as `sales-manager`.
    extensions: bool = False
    #: Login -> more senders that it may use: addresses, `@example.org` for a whole domain, `*` for all.
    senders: dict[str, list[str]] = {}


class Submission(Plugin[Settings]):
    """Knows what a login owns."""

    @hookimpl
    def mail(self, transaction: Transaction) -> Reject | None:
        """Refuse a sender that is another's."""
        session = transaction.session
        if not self.settings.match or session is None or not session.user or not transaction.sender:
            return None
        if session.protocol == "milter" or self._owns(session.user, transaction.sender):
            return None
        return Reject("5.7.1", "this sender is not an address of your login", reason="sender_login")

    @hookimpl
    def incoming(self, transaction: Transaction, message: Message) -> Message | None:
        """Put in what a mail program left to us."""
        if transaction.origin != "submission":
            return None
        missing = [name for name in ("Date", "Message-ID") if not message.values(name)]
        values = {
            "Date": format_datetime(self.clock.now()),
            "Message-ID": f"<{transaction.id}@{self.site.hostname}>",
        }
        for name in missing:
            message.append(name, values[name])
        return message if missing else None

    def _owns(self, login: str, sender: Address) -> bool:
        more = {lower(one) for one in self.settings.senders.get(login, ())}
        if more & {lower(sender), f"@{sender.domain}", "*"}:
            return True
        domains = self.settings.domains or [self.site.hostname]
        name, at, domain = lower(login).rpartition("@")
        own = [(name, domain)] if at else [(lower(login), lower(one)) for one in domains]
        return any(sender.domain == there and self._is_of(sender, who) for who, there in own)

    def _is_of(self, sender: Address, name: str) -> bool:
        """Whether a local part is somebody's name, or one with an extension where these are theirs."""
        local = lower(sender.local_part)
        return local == name or (self.settings.extensions and local.startswith(f"{name}-"))
