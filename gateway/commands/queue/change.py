"""`mailward queue retry`, `hold`, `release`, `delete`, `bounce`, `redirect`, `reroute`: change what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import conf_option, json_option, print_json, print_table
from gateway.commands.queue.asking import PATTERNS, ask, filters, wanted
from gateway.errors import QueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Change nothing; show which messages are meant."
)
#: Messages in one table.
_TABLE = 500


def _verb(name: str, done: str, text: str, example: str, *arguments: Callable[..., Any]) -> click.Command:
    """Make a command that changes the messages of a filter."""

    @click.argument("named", metavar="[ID]...", nargs=-1)
    @filters
    @click.option("--all", "every", is_flag=True, help="Every message; needed when nothing else is given.")
    @dry_run_option
    @conf_option
    @json_option
    def change(
        conf: Path | None,
        as_json: bool,
        dry_run: bool,
        every: bool,
        named: tuple[str, ...],
        ids: tuple[str, ...],
        to: str = "",
        **given: Any,
    ) -> None:
        meant = wanted(ids=ids + named, **given)
        if bool(meant) == every:
            raise click.UsageError("say which messages: ID, --sender and so on, or --all for every one")
        more: dict[str, Any] = {"to": to} if to else {}
        rows = ask(conf, f"queue.{name}", **more, **meant, dry_run=dry_run)
        print_changed(rows, f"would be {done}" if dry_run else done, as_json=as_json)

    for argument in arguments:
        change = argument(change)
    epilog = f"{PATTERNS}\n\n\b\nExamples:\n  mailward queue {name} {example}"
    return click.command(name, help=text, epilog=epilog)(change)


def print_changed(rows: Iterator[dict[str, Any]], done: str, *, as_json: bool) -> None:
    """Print what was changed as it comes. Raises QueueError when that was nothing."""
    count = 0
    some: list[dict[str, Any]] = []
    for row in rows:
        count += 1
        some.append(row)
        if len(some) == _TABLE:
            _print(some, done, as_json=as_json)
            some.clear()
    _print(some, done, as_json=as_json)
    if not count:
        raise QueueError("no message in the queue is meant by that, so nothing was changed")


def _print(rows: list[dict[str, Any]], done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    elif rows:
        print_table(("", "message", "sender", "recipients"), (_line(row, done) for row in rows))


def _line(row: dict[str, Any], done: str) -> tuple[str, ...]:
    first, *others = [one["address"] for one in row["recipients"]] or [""]
    more = f" and {len(others)} more" if others else ""
    return done, row["id"], f"<{row['sender']}>", f"{first}{more}"


CHANGES = (
    _verb(
        "retry",
        "retried",
        """Try messages that wait again now.

        Mail for a suspended destination goes on waiting.""",
        "--domain example.com",
    ),
    _verb(
        "hold",
        "held",
        """Hold messages back until they are released.

        Held mail does not age. A delivery under way is left alone.""",
        "--sender ann@example.org --dry-run",
    ),
    _verb(
        "release",
        "released",
        "Let held messages go; they are tried now.",
        "--plugin clamav --older-than 1d",
    ),
    _verb(
        "delete",
        "deleted",
        """Delete messages; nobody gets a bounce.

        A message goes with all its recipients. One with a delivery under way is left alone.""",
        "--sender '*@spam.example' --dry-run",
    ),
    _verb(
        "bounce",
        "bounced",
        """Give recipients up; senders get a bounce.

        Also of held ones. Needs a running gateway.""",
        "--recipient joe@example.com",
    ),
    _verb(
        "redirect",
        "redirected",
        """Send messages to another address.

        It takes the place of the recipients that match, and is rewritten and routed as if it had come by
        SMTP. A bounce names the recipient that the sender wrote.""",
        "joe@new.example --recipient joe@old.example",
        click.argument("to", metavar="ADDRESS"),
    ),
    _verb(
        "reroute",
        "rerouted",
        """Rewrite and route messages anew.

        By the configuration as it is now. It begins with the address that the sender wrote; where an
        alias made several of that, with each of these. A redirected recipient thereby goes where it was
        meant for at first.""",
        "--domain example.com",
    ),
)
