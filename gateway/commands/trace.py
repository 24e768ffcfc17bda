"""`mailward trace`: the story of a message, from its session to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, find_state, json_option, print_json
from gateway.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path


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

    The beginning of an id will do, or an address: then the newest messages from or to it are told.
    """
    from gateway.journal import render, tell

    state, _ = find_state(conf)
    folder = state / "journal"
    stories = tell(folder, wanted)
    if not stories:
        raise JournalError(f"{folder} knows no message {wanted}")
    for story in stories:
        if as_json:
            print_json(story.all_events())
        else:
            click.echo("\n".join(render(story)))
