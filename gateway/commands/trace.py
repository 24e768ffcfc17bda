"""`mailward trace`: the story of a message, from its session to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, find_state, json_option, print_json
from gateway.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path

#: So many messages are told at one time, and of each so many lines from its begin and its end.
_MESSAGES = 20
_BEGIN, _END = 30, 10


@click.command(
    epilog="""\b
Examples:
  mailward trace 01997a3e-5a40-7c4e-9d6b-0a3f2d7c5e11
  mailward trace joe@example.org"""
)
@click.argument("wanted", metavar="ID")
@conf_option
@json_option
def trace(wanted: str, conf: Path | None, as_json: bool) -> None:
    """Tell the story of the message ID: who sent it, which plugin said what, and what became of it.

    The beginning of an id will do, or an address. Of several messages the newest are told; a long story is
    then without its middle.
    """
    from gateway.journal import find, render, stories

    state, _ = find_state(conf)
    folder = state / "journal"
    ids = find(folder, wanted)
    if not ids:
        raise JournalError(f"{folder} knows no message {wanted}")
    for story in stories(folder, ids[-_MESSAGES:]):
        if as_json:
            print_json(story.all_events())
        else:
            lines = list(render(story))
            click.echo("\n".join(lines if len(ids) == 1 else _shortened(lines, story.message)))
    if len(ids) > _MESSAGES:
        older = f"{len(ids) - _MESSAGES} older messages"
        click.echo(f"{older} are meant, too: name one by its id, or more of it, to see it", err=True)


def _shortened(lines: list[str], message: str) -> list[str]:
    left_out = len(lines) - _BEGIN - _END
    if left_out <= 0:
        return lines
    return [*lines[:_BEGIN], f"  ... {left_out} more lines: mailward trace {message}", *lines[-_END:]]
