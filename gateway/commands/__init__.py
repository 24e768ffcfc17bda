"""The command `mailward`: one file for each of its commands, loaded when it is used."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from gateway.errors import GatewayError

#: name -> the module that holds a click command of that name.
COMMANDS = {"run": "run"}


class Lazy(click.Group):
    """A group that imports a command's module only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, in the order of a site's life."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"gateway.commands.{COMMANDS[cmd_name]}"), cmd_name)
        return command


@click.group(cls=Lazy)
def mailward() -> None:
    """Run a mail gateway that re-creates qmail as a chain of plugins."""


def main() -> None:
    """Run a command; an expected fault is one line on stderr and exit 1."""
    try:
        mailward()
    except GatewayError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
