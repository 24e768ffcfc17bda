"""`mailward settings`: the values in use, with where each comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import conf_option, json_option, load, print_json, print_table
from gateway.errors import ConfigError, Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.commands.assembly import Assembly


@click.command(
    epilog="""\b
Examples:
  mailward settings
  mailward settings virtual_domains
  mailward settings limits --json"""
)
@click.argument("section", required=False, default="")
@conf_option
@json_option
def settings(section: str, conf: Path | None, as_json: bool) -> None:
    """Show the settings in use, and where each comes from. Secrets are masked."""
    from gateway.commands.assembly import Assembly
    from gateway.settings.faults import hint

    rows = list(_rows(Assembly.of(load(conf))))
    if section:
        names = {key.partition(".")[0].partition("[")[0] for key, _, _ in rows}
        if section not in names:
            raise ConfigError(f"no section {section} is in use{hint(section, names)}")
        rows = [row for row in rows if row[0].startswith((f"{section}.", f"{section}[")) or row[0] == section]
    if as_json:
        print_json({"key": key, "value": value, "from": str(place)} for key, value, place in rows)
    else:
        from gateway.settings.options import as_yaml

        print_table(
            ("setting", "value", "from"), [(key, as_yaml(value), place) for key, value, place in rows]
        )


def _rows(assembly: Assembly) -> Iterator[tuple[str, Any, Place | str]]:
    tree = assembly.configuration.tree
    yield from tree.effective(assembly.configuration.settings)
    for stem, plugin in assembly.generation.plugins.items():
        yield from tree.effective(plugin.settings, stem)
