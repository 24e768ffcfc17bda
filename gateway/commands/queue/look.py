"""`mailward queue list`, `show` and `stats`: see what waits."""

from __future__ import annotations

import base64
import sys
import time
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import age, conf_option, json_option, plain, print_json, print_table
from gateway.commands.queue.asking import PATTERNS, ask, filters, wanted, whole_id
from gateway.errors import QueueError
from gateway.queue import AGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Messages in one table: a long queue is shown as it comes.
_TABLE = 500
_RECIPIENT = ("recipient", "state", "tries", "next", "status")
_COLUMNS = ("message", "age", "size", "sender", *_RECIPIENT)


@click.command(
    "list",
    epilog=f"""{PATTERNS}

\b
Examples:
  mailward queue list --sender ann@example.org --json
  mailward queue list --state held --subject '*invoice*' --since 1d""",
)
@filters
@conf_option
@json_option
def list_(conf: Path | None, as_json: bool, **given: Any) -> None:
    """List messages, a line for each recipient that has not ended."""
    rows = ask(conf, "queue.list", **wanted(**given))
    if as_json:
        print_json(rows)
        return
    first = next(rows, None)
    if first is None:
        click.echo("no message in the queue matches", err=True)
        return
    rows = chain([first], rows)
    while some := list(islice(rows, _TABLE)):
        print_table(_COLUMNS, (line for row in some for line in lines(row)))


@click.command(
    epilog="""\b
Examples:
  mailward queue show 01997a3e-5a40-7c4e-9d6b-0a3f2d7c5e11
  mailward queue show 01997a3e-5a40-7c4e-9d6b-0a3f2d7c5e11 --raw > message.eml"""
)
@click.argument("id_", metavar="ID")
@click.option("--body", is_flag=True, help="Show its text, too.")
@click.option("--raw", is_flag=True, help="Print the message alone, byte for byte.")
@conf_option
@json_option
def show(id_: str, body: bool, raw: bool, conf: Path | None, as_json: bool) -> None:
    """Show one message.

    Its envelope, what the last attempts said, and its header. The beginning of ID will do.
    """
    if body + raw + as_json > 1:
        raise click.UsageError("--body, --raw and --json exclude each other")
    rows = ask(conf, "queue.show", ids=[whole_id(conf, id_)], content=body or raw)
    row = next(rows, None)
    if row is None:
        raise QueueError(f"no message {id_} is in the queue; `mailward trace {id_}` tells what became of it")
    content = (base64.b64decode(piece["content"]) for piece in rows)
    if as_json:
        print_json([row])
    elif raw:
        for piece in content:
            sys.stdout.buffer.write(piece)
    else:
        _show(row)
        _echo(row["header"])
        if body:
            next(content, None)  # the header, which is shown
            _echo(b"".join(content).decode("utf-8", "replace"))
    for _ in rows:  # to the end, so that what went wrong is told
        pass


def _show(row: dict[str, Any]) -> None:
    facts = row["facts"]
    for name, text in (
        ("message", row["id"]),
        ("sender", f"<{row['sender']}>"),
        ("accepted", f"{age(time.time() - row['birth'])} ago, by {row['origin']}, {row['size']} bytes"),
        ("client", " ".join(facts.get(key, "") for key in ("client_ip", "listener", "user")).strip()),
        ("parent", row["parent"]),
    ):
        if text:
            click.echo(f"{name + ':':<10}{plain(text)}")
    click.echo()
    print_table((*_RECIPIENT, "route"), ((*_recipient(one), one["route"]) for one in row["recipients"]))
    click.echo()
    for one in row["recipients"]:
        for note in _notes(one):
            click.echo(f"{plain(one['address'])}: {plain(note)}")
    click.echo()


def _notes(one: dict[str, Any]) -> Iterator[str]:
    """Say what the table has no column for."""
    if one["original"] != one["address"]:
        yield f"was {one['original']}"
    if one["held"]:
        yield f"held: {one['held']}" + (f" ({one['held_by']})" if one["held_by"] else "")
    if one["suspended"]:
        yield f"{one['suspended']} is suspended"
    yield from one["report"].splitlines()


def _echo(text: str) -> None:
    for line in text.splitlines():
        click.echo(plain(line.expandtabs()))


@click.command(epilog="Example: mailward queue stats")
@conf_option
@json_option
def stats(conf: Path | None, as_json: bool) -> None:
    """Count recipients by domain, state and age.

    Each column counts those younger than its head and not than the head before; the last one all that are
    older.
    """
    rows = list(ask(conf, "queue.stats"))
    if as_json:
        print_json(rows)
        return
    now = time.time()
    rows.sort(key=lambda row: -row["recipients"])
    heads = [f"<{age(60 * bound)}" for bound in AGES]
    lines = [
        (row["domain"], row["state"], row["recipients"], age(now - row["oldest"]), *row["ages"])
        for row in rows
    ]
    print_table(("domain", "state", "recipients", "oldest", *heads, "older"), lines)


def lines(row: dict[str, Any]) -> Iterable[tuple[object, ...]]:
    """Give the lines of a table for one message: one for each recipient."""
    about = (row["id"], age(time.time() - row["birth"]), row["size"], f"<{row['sender']}>")
    return ((*about, *_recipient(one)) for one in row["recipients"])


def _recipient(one: dict[str, Any]) -> tuple[object, ...]:
    until = ""
    if one["state"] == "queued":
        now = time.time()
        until = "suspended" if one["suspended"] else age(one["due"] - now) if one["due"] > now else "now"
    return one["address"], one["state"], one["attempts"], until, one["held"] or one["status"]
