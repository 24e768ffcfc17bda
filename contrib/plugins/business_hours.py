"""business_hours: hold the mail of some senders until the office opens.

Their mail is taken at any time, and held in the queue when it comes outside the hours. The plugin adds a
command that lets it go when the office is open, and does nothing when it is not. A timer calls it:

    business_hours:
      senders: [news@example.org, "@billing.example.org"]
      zone: Europe/Berlin

    */5 * * * *  mailward --conf /etc/mailward/conf.d business-hours

It releases all that is held of these senders, for whatever reason. `mailward queue list --state held` shows
it, and `mailward queue release --id ID` lets one message go at once. Time spent held does not count into a
message's age. The event of the command is `message.released`.
"""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import click
from pydantic import AfterValidator, Field

from gateway import Hold, Plugin, Section, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Transaction

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _zone(text: str) -> str:
    if text not in available_timezones():
        raise ValueError("should be a time zone such as Europe/Berlin")
    return text


class Settings(Section):
    """Whose mail waits, and for what."""

    #: Senders: addresses, or `@example.org` for all of a domain.
    senders: list[Annotated[str, AfterValidator(lower)]] = []
    #: The days on which the office opens.
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = ["mon", "tue", "wed", "thu", "fri"]
    #: The hour at which it opens.
    opens: int = Field(default=8, ge=0, le=23)
    #: The hour at which it closes.
    closes: int = Field(default=18, ge=1, le=24)
    #: The time zone of these hours.
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"


class BusinessHours(Plugin[Settings]):
    """Holds at MAIL, so that all recipients wait together."""

    @hookimpl
    def mail(self, transaction: Transaction) -> Hold | None:
        """Hold a listed sender's message outside the hours."""
        return Hold("business_hours") if self._listed(transaction.sender) and not self._open() else None

    @hookimpl
    def commands(self) -> list[click.Command]:
        """Add `mailward business-hours`."""

        @click.command("business-hours", help="Let the mail go that waits for the office to open.")
        @click.pass_context
        def release(context: click.Context) -> None:
            if not self._open():
                click.echo("closed: nothing is released")
                return
            held = [row for row in _rows(context, "list", "--state", "held") if self._listed(row["sender"])]
            for row in held:
                _rows(context, "release", "--id", row["id"])
            click.echo(f"open: {len(held)} released")

        return [release]

    def _listed(self, sender: str) -> bool:
        sender = lower(sender)
        return bool({sender, f"@{sender.rpartition('@')[2]}"} & set(self.settings.senders))

    def _open(self) -> bool:
        now = self.clock.now().astimezone(ZoneInfo(self.settings.zone))
        on = DAYS[now.weekday()] in self.settings.days
        return on and self.settings.opens <= now.hour < self.settings.closes


def _rows(context: click.Context, *arguments: str) -> list[dict[str, Any]]:
    """Run `mailward queue ...` and read what it prints."""
    root = context.find_root()
    conf = ("--conf", str(root.params["conf"])) if root.params.get("conf") else ()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        root.command.main([*conf, "queue", *arguments, "--json"], standalone_mode=False)
    return [json.loads(line) for line in printed.getvalue().splitlines()]
