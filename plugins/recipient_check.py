"""recipient_check: refuse unknown recipients while the client still listens. qmail bounced such mail later.

qmail-smtpd took any recipient of its domains and bounced later, to senders that were mostly forged. This
asks, at RCPT, where the recipient would go and whether anybody is there. Without a route plugin that can
say so (`exists`), such as for remote recipients, nothing is refused.

Events: `recipient.refused` with the reason `unknown_recipient`; a doubt is a deferral with `recipient_doubt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import Defer, Plugin, Reject, Section, Stages, hookimpl, resolve

if TYPE_CHECKING:
    from gateway import Recipient, Transaction

UNKNOWN = Reject("5.1.1", "no such user here", reason="unknown_recipient")
DOUBT = Defer("4.3.0", "cannot look this recipient up now, try again later", reason="recipient_doubt")


class RecipientCheck(Plugin[Section]):
    """Walks `rewrite` and `route`, and asks the plugin that would deliver."""

    @hookimpl
    async def rcpt(self, transaction: Transaction, recipient: Recipient) -> Reject | Defer | None:
        """Refuse when the recipient, or all that it stands for, is unknown; defer on doubt."""
        known, doubt = False, False
        for routed in await resolve(self.chain, recipient, transaction.sender):
            if routed.failed or routed.route is None:
                doubt = True
                continue
            answer = await self.chain.ask_plugin(routed.route.plugin, Stages.exists, routed.recipient)
            doubt = doubt or answer.failed
            known = known or (not answer.failed and answer.value is not False)
        if known:
            return None
        return DOUBT if doubt else UNKNOWN
