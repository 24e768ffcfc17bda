"""What every command shares: where the configuration is, and how data is printed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.worker import Configuration

DEFAULT = Path("/etc/mailward/conf.d")

conf_option = click.option(
    "--conf",
    type=click.Path(path_type=Path),
    is_eager=True,  # known when `--help` asks plugins for their commands
    help="Folder of the configuration; else $MAILWARD_CONF, else /etc/mailward/conf.d.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


def configuration_folder(conf: Path | None) -> Path:
    """Find the configuration; there is no silent fall-back to the demo. Raises ConfigError."""
    context = click.get_current_context(silent=True)
    conf = conf or (context.find_root().params.get("conf") if context else None)
    folder = conf or Path(os.environ.get("MAILWARD_CONF") or DEFAULT)
    if folder.is_dir():
        return folder
    raise ConfigError(
        f"no configuration at {folder}: `mailward init DIR` writes one, `mailward run --demo` needs none"
    )


def load(conf: Path | None) -> Configuration:
    """Read the configuration that is meant. Raises ConfigError."""
    from gateway.worker import Configuration

    folder = configuration_folder(conf)
    return Configuration.load(folder, _base(folder))


def find_state(conf: Path | None) -> tuple[Path, ConfigError | None]:
    """Find the state folder of the gateway that is meant, and what keeps its folder from loading, if it does.

    A gateway that runs goes on while its files are broken, and must be asked all the same. Raises ConfigError
    where they do not say which state it has.
    """
    folder = configuration_folder(conf)
    try:
        return load(conf).settings.gateway.state, None
    except ConfigError as error:
        state = _state_in(folder)
        if state is None:
            raise
        return state, error


def _base(folder: Path) -> Path | None:
    """Say where relative paths start: the demo's, where we are."""
    from gateway.commands.run import demo_folder

    return Path.cwd() if folder.resolve() == demo_folder().resolve() else None


def _state_in(folder: Path) -> Path | None:
    """Give `gateway.state` as the files say that can be read; None when one that cannot might say it."""
    from gateway.settings import Tree
    from gateway.settings.core import Gateway

    files, base = sorted(folder.glob("[!.]*.yaml")), _base(folder) or folder.absolute().parent
    found, all_said = "", bool(files)
    for path in files:
        try:
            tree = Tree.parse({path.name: path.read_text("utf-8-sig")}, base)
        except (ConfigError, OSError, UnicodeDecodeError):
            all_said = False
        else:
            found = tree.text("gateway", "state") or found
    if not found and all_said:
        found = str(Gateway.model_fields["state"].default)
    return base / found if found else None


def program() -> str:
    """Name this program as the person at the terminal would type it."""
    path = Path(sys.argv[0])
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def print_json(rows: Iterable[Any]) -> None:
    """Print one object per line."""
    for row in rows:
        click.echo(json.dumps(row))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table at a terminal, else lines whose fields are separated by tabs."""
    cells = [[plain(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(name, overflow="fold") for name in columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def plain(text: str) -> str:
    """Make what came from outside harmless to a terminal and to a line."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def age(seconds: float) -> str:
    """Write a time span as a person says it: `40s`, `5m`, `3h`, `2d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"
