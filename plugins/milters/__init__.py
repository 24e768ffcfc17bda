"""milters: let filters that speak milter (rspamd, opendkim, clamav-milter) judge and edit mail.

Options: `filters`, each with `address`, `name`, `on_error`, `connect_timeout`, `command_timeout`,
`content_timeout`. They are asked in order at the `message` stage, when the message is whole: each hears the
whole session anew, sees what those before it have changed, and the first refusal ends it. A recipient that a
filter refuses gets that answer alone. `deadline` is 5m unless it is given.

Fields `Authentication-Results` that came with the message and claim to be ours are removed first.

Events: none of its own; `milters` is the plugin in those of the message, and a filter that fails is logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from gateway import (
    Accept,
    Decision,
    Defer,
    Discard,
    Duration,
    Endpoint,
    Hold,
    MilterError,
    Plugin,
    Reject,
    Section,
    Spool,
    hookimpl,
)
from gateway.milter import Mail, Patience, Verdict, apply, decision_of, show

from .facts import macros_of, shown_as, without_claims

if TYPE_CHECKING:
    from pathlib import Path

    from gateway import Address, Context, Message, Transaction

#: A filter that could not be reached is left alone for so many seconds; its `on_error` counts at once.
REST = 10.0
#: The largest body that a filter may put in the place of another.
LARGEST_BODY = 256 * 1024 * 1024


class Filter(BaseModel):
    """One filter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Where it listens: `host:port` or `unix:/path`.
    address: Annotated[Endpoint, BeforeValidator(Endpoint.parse), PlainSerializer(str)]
    #: Its name in events and logs; the address when empty.
    name: str = ""
    #: What becomes of mail when it fails: `defer` (451), `reject` (554), `hold` for a person to look at,
    #: or `skip` it, which lets mail through unseen or unsigned.
    on_error: Literal["defer", "reject", "hold", "skip"] = "defer"
    #: How long a connection may take.
    connect_timeout: Duration = Field(default=10.0, gt=0)
    #: How long the answer to one command may take.
    command_timeout: Duration = Field(default=30.0, gt=0)
    #: How long it may be silent while it works on the content.
    content_timeout: Duration = Field(default=120.0, gt=0)


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
            name = one.name or str(one.address)
            if verdict.refuses:
                return decision_of(verdict.answer, name)
            refused |= {address: decision_of(said, name) for address, said in verdict.refused.items()}
            held = held or verdict.held
            if not mail.recipients:
                return refused or Discard(f"milter {name}: no recipient is left")
        if not self.settings.dry_run:
            _take(transaction, message, first, mail, refused)
        return _decision(transaction, refused, held)

    async def _show(self, number: int, one: Filter, transaction: Transaction, mail: Mail) -> Verdict:
        """Show the mail to a filter. Raises MilterError, at once while the filter is left alone."""
        if self.clock.monotonic() < self._resting.get(number, 0.0):
            raise MilterError("could not be reached a moment ago")
        patience = Patience(one.connect_timeout, one.command_timeout, one.content_timeout)
        macros = macros_of(transaction, mail, self.site.hostname, self.clock.now())
        try:
            return await show(one.address, patience, mail, macros, Spool(self._folder, limit=LARGEST_BODY))
        except MilterError as error:
            if str(error).startswith("cannot be reached"):
                self._resting[number] = self.clock.monotonic() + REST
            raise

    def _failed(self, one: Filter, transaction: Transaction, error: MilterError) -> Decision | None:
        name = one.name or str(one.address)
        self.log.warning(
            "filter failed", filter=name, error=str(error), message=transaction.id, then=one.on_error
        )
        reason = f"milter {name} failed"
        if one.on_error == "defer":
            return Defer("4.7.1", "the message cannot be checked now, try again later", reason=reason)
        if one.on_error == "reject":
            return Reject("5.7.1", "the message cannot be checked", reason=reason)
        return Hold(reason) if one.on_error == "hold" else None


def _take(
    transaction: Transaction, message: Message, first: Mail, mail: Mail, refused: dict[Address, Decision]
) -> None:
    """Make the filters' mail the transaction's; nothing waits in here, so all of it counts or none."""
    message.adopt(mail.message)
    transaction.sender = mail.sender
    if mail.recipients != first.recipients:
        kept = [one for one in first.recipients if one.address in refused]
        gone = [one for one in transaction.recipients if one.discarded]
        transaction.recipients[:] = [*mail.recipients, *kept, *gone]


def _decision(
    transaction: Transaction, refused: dict[Address, Decision], held: str
) -> Decision | dict[Address, Decision] | None:
    rest = Hold(held) if held else Accept()
    if refused:
        return {one.address: refused.get(one.address, rest) for one in transaction.recipients}
    return rest if held else None
