"""`mailward queue suspend`, `resume` and `suspended`: mail for a destination waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import age, conf_option, json_option, print_json, print_table
from gateway.commands.queue.asking import ask
from gateway.commands.queue.change import dry_run_option, print_changed
from gateway.errors import QueueError
from gateway.settings.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_COLUMNS = ("destination", "since", "ends", "by", "reason")


def _seconds(_: click.Context, parameter: click.Parameter, text: str | None) -> float:
    try:
        return parse_duration(text) if text else 0.0
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


@click.command(
    epilog="""\b
Examples:
  mailward queue suspend example.com --for 2h --reason 'their disk is full'
  mailward queue suspend '*.example.net'
  mailward queue suspend '*'          (every destination)"""
)
@click.argument("destination")
@click.option(
    "--for", "seconds", metavar="TIME", callback=_seconds, help="Ends by itself: 30m, 2h; else by `resume`."
)
@click.option("--reason", default="", metavar="TEXT", help="Shown by `suspended`, and in the event.")
@dry_run_option
@conf_option
@json_option
def suspend(
    destination: str, seconds: float, reason: str, dry_run: bool, conf: Path | None, as_json: bool
) -> None:
    """Let mail for a destination wait.

    No attempt is made; deliveries under way go on. DESTINATION is the domain of recipients, or the next
    host as `queue show` names it behind the route; * and ? stand for any characters and for one. It lasts
    over restarts.

    Mail that waits grows older, but is not given up before it had one more try.
    """
    if dry_run:
        rows = ask(conf, "queue.list", domain=destination, state="queued")
        print_changed(rows, "would wait", as_json=as_json)
        return
    now = time.time()
    until = now + seconds if seconds else 0.0
    rows = ask(conf, "queue.suspend", destination=destination, since=now, until=until, reason=reason)
    _print(rows, as_json=as_json)


@click.command(epilog="Example: mailward queue resume example.com")
@click.argument("destination")
@dry_run_option
@conf_option
@json_option
def resume(destination: str, dry_run: bool, conf: Path | None, as_json: bool) -> None:
    """Let mail for a destination go again.

    All that waits for it is due now. DESTINATION is what `suspended` shows.
    """
    if dry_run:
        rows = ask(conf, "queue.list", domain=destination, state="queued")
        print_changed(rows, "would be tried", as_json=as_json)
        return
    gone = list(ask(conf, "queue.resume", destination=destination))
    if not gone:
        raise QueueError(f"{destination} is not suspended: `mailward queue suspended` shows what is")
    _print(gone, as_json=as_json)


@click.command(epilog="Example: mailward queue suspended")
@conf_option
@json_option
def suspended(conf: Path | None, as_json: bool) -> None:
    """Show the suspended destinations."""
    found = {row["destination"]: row for row in ask(conf, "queue.suspended")}
    if found or as_json:
        _print(found.values(), as_json=as_json)
    else:
        click.echo("no destination is suspended", err=True)


def _print(rows: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    now = time.time()
    lines = [
        (
            row["destination"],
            f"{age(now - row['since'])} ago",
            f"in {age(row['until'] - now)}" if row["until"] else "by `resume`",
            row["actor"],
            row["reason"],
        )
        for row in rows
    ]
    print_table(_COLUMNS, lines)
