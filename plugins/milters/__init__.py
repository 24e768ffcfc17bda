"""milters: let filters that speak milter (rspamd, opendkim, clamav-milter) judge and edit mail.

Options: `filters`, each with `address`, `name`, `when`, `on_error`, `connect_timeout`, `command_timeout`,
`content_timeout`. They are asked in order at the `message` stage, when the message is whole: each hears the
whole session anew, sees what those before it have changed, and the first refusal ends it. A recipient that a
filter refuses gets that answer alone. `deadline` is 5m unless it is given.

Fields `Authentication-Results` that came with the message and claim to be ours are removed first.

Events: none of its own; `milters` is the plugin in those of the message, and a filter that fails is logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from gateway import Discard, Hold, MilterError, Plugin, Section, Spool, hookimpl, mail_of
from gateway.milter import apply, decision_of, show

from .facts import macros_of, shown_as, without_claims
from .filters import Filter, decision_for, take

if TYPE_CHECKING:
    from pathlib import Path

    from gateway import Address, Context, Decision, Message, Transaction
    from gateway.milter import Mail, Verdict

#: A filter that could not be reached is left alone for so many seconds; its `on_error` counts at once.
REST = 10.0
#: The largest body that a filter may put in the place of another.
LARGEST_BODY = 256 * 1024 * 1024


class Settings(Section):
    """Which filters see the mail."""

    #: The filters, in the order in which they are asked.
    filters: list[Filter] = []

    @model_validator(mode="before")
    @classmethod
    def _wait_longer(cls, data: Any) -> Any:
        """A filter may take minutes, where other plugins take milliseconds."""
        return {"deadline": "5m", **data} if isinstance(data, dict) else data


class Milters(Plugin[Settings]):
    """Shows each message to the filters."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: Index of a filter -> until when it is left alone.
        self._resting: dict[int, float] = {}

    @property
    def _folder(self) -> Path:
        return self.site.state / self.stem

    @hookimpl
    def startup(self) -> None:
        """Make room for new bodies, and drop what a killed gateway has left there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("body-*"):
            left.unlink()

    @hookimpl
    async def message(
        self, transaction: Transaction, message: Message
    ) -> Decision | dict[Address, Decision] | None:
        """Ask one filter after the other; their edits count when none of them refuses."""
        if transaction.origin == "bounce" or not self.settings.filters:
            return None
        without_claims(message, self.site.hostname)
        first = mail = shown_as(transaction, message, self.site.hostname)
        refused: dict[Address, Decision] = {}
        held = ""
        for number, one in enumerate(self.settings.filters):
            if not one.when.concerns(mail_of(transaction)):
                continue
            try:
                verdict = await self._show(number, one, transaction, mail)
                mail = apply(verdict, mail)
            except MilterError as error:
                failure = self._failed(one, transaction, error)
                if isinstance(failure, Hold):
                    held = held or failure.reason
                elif failure is not None:
                    return failure
                continue
            if verdict.refuses:
                return decision_of(verdict.answer, one.title)
            refused |= {address: decision_of(said, one.title) for address, said in verdict.refused.items()}
            held = held or verdict.held
            if not mail.recipients:
                return refused or Discard(f"milter {one.title}: no recipient is left")
        if not self.settings.dry_run:
            take(transaction, message, first, mail, refused)
        return decision_for(transaction, refused, held)

    async def _show(self, number: int, one: Filter, transaction: Transaction, mail: Mail) -> Verdict:
        """Show the mail to a filter. Raises MilterError, at once while the filter is left alone."""
        if self.clock.monotonic() < self._resting.get(number, 0.0):
            raise MilterError("could not be reached a moment ago")
        macros = macros_of(transaction, mail, self.site.hostname, self.clock.now())
        try:
            return await show(
                one.address, one.patience, mail, macros, Spool(self._folder, limit=LARGEST_BODY)
            )
        except MilterError as error:
            if str(error).startswith("cannot be reached"):
                self._resting[number] = self.clock.monotonic() + REST
            raise

    def _failed(self, one: Filter, transaction: Transaction, error: MilterError) -> Decision | None:
        self.log.warning(
            "filter failed", filter=one.title, error=str(error), message=transaction.id, then=one.on_error
        )
        return one.failure
