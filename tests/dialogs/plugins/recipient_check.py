"""recipient_check: who exists in the dialogs. A site plugin that replaces the bundled one.

Local parts other than `info`, `joe`, `postmaster` and what holds a blank or is not ASCII are unknown at
example.org; `slow` cannot be checked now. example.net takes everybody.
"""

from __future__ import annotations

from gateway import Defer, Plugin, Recipient, Reject, Section, hookimpl

Settings = Section


class RecipientCheck(Plugin[Section]):
    """Knows three people."""

    @hookimpl
    def rcpt(self, recipient: Recipient) -> Reject | Defer | None:
        """Refuse who is unknown."""
        local = recipient.address.local_part
        if recipient.address.domain != "example.org" or " " in local or not local.isascii():
            return None
        if local == "slow":
            return Defer("4.3.0", "cannot look that up now", reason="doubt")
        if local in {"info", "joe", "postmaster", "hold", "drop"}:
            return None
        return Reject("5.1.1", "no such user here", reason="unknown_recipient")
