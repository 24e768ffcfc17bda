"""`mailward stages`: the chain as it will be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gateway import console
from gateway.commands.common import conf_option, json_option, load, print_json, print_table
from gateway.errors import ControlError
from gateway.hookspecs import SPECS

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.loader import Generation


@click.command(
    epilog="""\b
Examples:
  mailward stages
  mailward stages --json"""
)
@conf_option
@json_option
def stages(conf: Path | None, as_json: bool) -> None:
    """Show which plugins are asked at each stage, in order, and where each comes from.

    That is the chain that the configuration makes; when the running gateway has another one, it says so.
    """
    from gateway.commands.assembly import Assembly

    configuration = load(conf)
    running = _running(configuration.settings.gateway.state)
    rows = describe(Assembly.of(configuration).generation)
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("stage", "kind", "if nobody speaks", "plugin", "from", "file"),
            [
                (row["stage"], row["kind"], row["silence"], one["stem"], one["origin"], one["file"])
                for row in rows
                for one in row["plugins"] or [{"stem": "-", "origin": "", "file": ""}]
            ],
        )
    if running is not None and running != _plugins(rows):
        click.echo("The running gateway has another chain: `mailward reload` gives it this one.", err=True)


def describe(generation: Generation) -> list[dict[str, Any]]:
    """Give the stages in mail order, each with its plugins in the order in which they are asked."""
    found = {stem: plugin.found for stem, plugin in generation.plugins.items()}
    return [
        {
            "stage": name,
            "kind": spec.kind,
            "silence": spec.silence,
            "plugins": [
                {"stem": stem, "origin": found[stem].origin, "file": str(found[stem].path)}
                for stem in generation.order[name]
            ],
        }
        for name, spec in SPECS.items()
    ]


def _running(state: Path) -> dict[str, Any] | None:
    """Give stage -> plugins of the running gateway, None when there is none."""
    try:
        return _plugins(console.call(state, "stages"))
    except ControlError:
        return None


def _plugins(rows: Any) -> dict[str, Any]:
    return {row["stage"]: row["plugins"] for row in rows}
