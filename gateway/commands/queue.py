"""`mailward queue`: see and change what waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import age, conf_option, json_option, load, plain, print_json, print_table
from gateway.errors import QueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: `queue list` asks for this many entries at a time.
PAGE = 1000
_COLUMNS = ("message", "age", "size", "sender", "recipient", "state", "tries", "next", "status")


@click.group(
    epilog="""\b
Examples:
  mailward queue stats
  mailward queue list --domain example.com
  mailward queue retry --state queued --older-than 1d"""
)
def queue() -> None:
    """See and change what waits in the queue.

    Without a running gateway these commands open the queue themselves.
    """


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which messages are meant; together they narrow down."""
    for option in (
        click.option(
            "--older-than", default="", metavar="TIME", help="Accepted longer ago than this: 1h, 7d."
        ),
        click.option("--state", type=click.Choice(("queued", "attempting", "held")), default=None),
        click.option("--domain", default="", help="Of a recipient."),
        click.option("--recipient", default="", metavar="ADDRESS"),
        click.option("--sender", default="", metavar="ADDRESS"),
        click.option("--id", "ids", multiple=True, metavar="ID", help="May be given several times."),
    ):
        command = option(command)
    return command


def _wanted(ids: tuple[str, ...], older_than: str, state: str | None, **texts: str) -> dict[str, Any]:
    """Make the arguments of a Filter, without what was not given."""
    from gateway.settings.units import parse_duration

    wanted: dict[str, Any] = {key: text for key, text in texts.items() if text}
    if ids:
        wanted["ids"] = list(ids)
    if state:
        wanted["state"] = state
    if older_than:
        try:
            wanted["born_before"] = time.time() - parse_duration(older_than)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--older-than") from None
    return wanted


@queue.command("list", epilog="Example: mailward queue list --sender ann@example.org --json")
@_filters
@conf_option
@json_option
def list_(conf: Path | None, as_json: bool, **filters: Any) -> None:
    """List messages, a line for each recipient that has not ended."""
    rows = list(_pages(conf, _wanted(**filters)))
    if as_json:
        print_json(rows)
    elif rows:
        print_table(_COLUMNS, (line for row in rows for line in _lines(row)))
    else:
        click.echo("no message in the queue matches", err=True)


@queue.command(epilog="Example: mailward queue show 01997a3e-5a40-7c4e-9d6b-0a3f2d7c5e11")
@click.argument("wanted", metavar="ID")
@conf_option
@json_option
def show(wanted: str, conf: Path | None, as_json: bool) -> None:
    """Show one message: its envelope, what the last attempts said, and its header."""
    rows = list(_ask(conf, "queue.show", ids=[wanted]))
    if not rows:
        raise QueueError(
            f"no message {wanted} is in the queue; `mailward trace {wanted}` tells what became of it"
        )
    if as_json:
        print_json(rows)
        return
    row = rows[0]
    print_table(_COLUMNS, _lines(row))
    for one in row["recipients"]:
        for line in one["report"].splitlines():
            click.echo(f"{plain(one['address'])}: {plain(line)}")
    click.echo()
    for line in row["header"].splitlines():
        click.echo(plain(line))


@queue.command(epilog="Example: mailward queue stats")
@conf_option
@json_option
def stats(conf: Path | None, as_json: bool) -> None:
    """Count recipients by domain and state."""
    rows = list(_ask(conf, "queue.stats"))
    if as_json:
        print_json(rows)
        return
    now = time.time()
    lines = [(row["domain"], row["state"], row["recipients"], age(now - row["oldest"])) for row in rows]
    print_table(("domain", "state", "recipients", "oldest"), lines)


def _change(name: str, done: str, text: str) -> None:
    """Add one command that changes the messages of a filter."""

    @queue.command(name, help=text, epilog=f"Example: mailward queue {name} --domain example.com")
    @_filters
    @click.option("--all", "every", is_flag=True, help="Every message; needed when nothing else is given.")
    @conf_option
    @json_option
    def change(conf: Path | None, as_json: bool, every: bool, **filters: Any) -> None:
        wanted = _wanted(**filters)
        if bool(wanted) == every:
            raise click.UsageError("say which messages: --id, --sender and so on, or --all for every one")
        rows = list(_ask(conf, f"queue.{name}", **wanted))
        if as_json:
            print_json(rows)
        elif rows:
            print_table(("", "message"), [(done, row["id"]) for row in rows])
        if not rows:
            raise QueueError("no message in the queue is meant by that, so nothing was changed")


_change("retry", "retried", "Try messages that wait again now.")
_change("hold", "held", "Hold messages back until they are released.")
_change("release", "released", "Let messages go that are held; they are tried now.")
_change("delete", "deleted", "Delete messages; nobody gets a bounce.")
_change("bounce", "bounced", "Give messages up; their senders get a bounce. Needs a running gateway.")


def _ask(conf: Path | None, name: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Ask the running gateway, or the queue itself when none runs."""
    from gateway import console

    configuration = load(conf)
    state = configuration.settings.gateway.state
    if console.running(state):
        return console.call(state, name, **arguments)
    from gateway.commands.ownership import ask

    return iter(ask(configuration, name, arguments))


def _pages(conf: Path | None, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        rows = list(_ask(conf, "queue.list", limit=PAGE, after=after, **wanted))
        yield from rows
        if len(rows) < PAGE:
            return
        after = rows[-1]["id"]


def _lines(row: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    now = time.time()
    for one in row["recipients"]:
        until = "" if one["state"] != "queued" else age(one["due"] - now) if one["due"] > now else "now"
        yield (
            row["id"],
            age(now - row["birth"]),
            row["size"],
            f"<{row['sender']}>",
            one["address"],
            one["state"],
            one["attempts"],
            until,
            one["status"],
        )
