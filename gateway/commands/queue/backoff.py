"""`mailward queue backoff`: addresses that do not answer. Replaces qmail-tcpto and qmail-tcpok."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from gateway import console
from gateway.commands.common import age, conf_option, find_state, json_option, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

_REASON = "remote.backoff "


@click.command(
    epilog="""\b
Examples:
  mailward queue backoff
  mailward queue backoff --reset
  mailward queue backoff --reset 192.0.2.7"""
)
@click.option("--reset", is_flag=True, help="Forget them: they are tried again at the next attempt.")
@click.argument("address", default="")
@conf_option
@json_option
def backoff(address: str, reset: bool, conf: Path | None, as_json: bool) -> None:
    """Show which addresses did not answer, and are left alone for a while.

    Two connections in vain, two minutes apart, let an address rest for over an hour; other addresses of the
    destination are still tried. ADDRESS is the begin of what the list shows.
    """
    state, _ = find_state(conf)
    name = "unmark" if reset else "marks"
    rows = [_row(one) for one in console.call(state, name, prefix=_REASON + address)]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("every address that was tried has answered", err=True)
    elif reset:
        print_table(("", "address"), [("reset", row["address"]) for row in rows])
    else:
        now = time.time()
        rests = (f"for {age(row['until'] - now)}" if row["until"] > now else "no" for row in rows)
        columns = ("address", "host", "tries", "last", "rests")
        lines = [
            (row["address"], row["host"], row["tries"], f"{age(now - row['last'])} ago", rest)
            for row, rest in zip(rows, rests, strict=True)
        ]
        print_table(columns, lines)


def _row(mark: dict[str, Any]) -> dict[str, Any]:
    return {"address": mark["key"].removeprefix(_REASON), **json.loads(mark["note"])}
