"""`mailward reload`: the running gateway takes the configuration as it is now, all of it or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gateway import console
from gateway.commands.common import conf_option, json_option, load, print_json
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@click.command(epilog="Example: mailward reload")
@conf_option
@json_option
def reload(conf: Path | None, as_json: bool) -> None:
    """Make the running gateway use the configuration as it is now; no session is cut.

    With a problem in it the gateway keeps its old configuration; exit 1. Homes that would get nothing are
    warned of, as `check` does.
    """
    from gateway.commands.homes import undelivered

    try:
        configuration = load(conf)
    except ConfigError as error:
        raise ConfigError([*error.problems, _KEPT]) from error
    rows = list(console.call(configuration.settings.gateway.state, "reload"))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"reloaded: configuration {row['generation']} is in use")
        for what in ("added", "removed", "changed"):
            if row[what]:
                click.echo(f"{what}: {', '.join(row[what])}")
    for problem in undelivered(configuration):
        click.echo(f"warning: {problem}")


_KEPT = ConfigError("nothing was reloaded: a gateway that runs keeps its old configuration").problems[0]
