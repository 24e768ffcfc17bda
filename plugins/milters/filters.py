"""A filter of the settings, and what the filters' words become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from gateway import Accept, Decision, Defer, Duration, Endpoint, Hold, Reject, When
from gateway.milter import Patience

if TYPE_CHECKING:
    from gateway import Address, Message, Transaction
    from gateway.milter import Mail


class Filter(BaseModel):
    """One filter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Where it listens: `host:port` or `unix:/path`.
    address: Annotated[Endpoint, BeforeValidator(Endpoint.parse), PlainSerializer(str)]
    #: Its name in events and logs; the address when empty.
    name: str = ""
    #: Which mail it sees; other mail passes it by.
    when: When = When()
    #: What becomes of mail when it fails: `defer` (451), `reject` (554), `hold` for a person to look at,
    #: or `skip` it, which lets mail through unseen or unsigned.
    on_error: Literal["defer", "reject", "hold", "skip"] = "defer"
    #: How long a connection may take.
    connect_timeout: Duration = Field(default=10.0, gt=0)
    #: How long the answer to one command may take.
    command_timeout: Duration = Field(default=30.0, gt=0)
    #: How long it may be silent while it works on the content.
    content_timeout: Duration = Field(default=120.0, gt=0)

    @property
    def title(self) -> str:
        """What events and logs call it."""
        return self.name or str(self.address)

    @property
    def patience(self) -> Patience:
        """How long it may take."""
        return Patience(self.connect_timeout, self.command_timeout, self.content_timeout)

    @property
    def failure(self) -> Decision | None:
        """What becomes of mail that it could not be shown."""
        reason = f"milter {self.title} failed"
        if self.on_error == "defer":
            return Defer("4.7.1", "the message cannot be checked now, try again later", reason=reason)
        if self.on_error == "reject":
            return Reject("5.7.1", "the message cannot be checked", reason=reason)
        return Hold(reason) if self.on_error == "hold" else None


def take(
    transaction: Transaction, message: Message, first: Mail, mail: Mail, refused: dict[Address, Decision]
) -> None:
    """Make the filters' mail the transaction's; nothing waits in here, so all of it counts or none."""
    message.adopt(mail.message)
    transaction.sender = mail.sender
    if mail.recipients != first.recipients:
        kept = [one for one in first.recipients if one.address in refused]
        gone = [one for one in transaction.recipients if one.discarded]
        transaction.recipients[:] = [*mail.recipients, *kept, *gone]


def decision_for(
    transaction: Transaction, refused: dict[Address, Decision], held: str
) -> Decision | dict[Address, Decision] | None:
    """Give one decision, or one for each recipient where a filter has refused some."""
    rest = Hold(held) if held else Accept()
    if refused:
        return {one.address: refused.get(one.address, rest) for one in transaction.recipients}
    return rest if held else None
