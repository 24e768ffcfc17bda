"""`mailward init`: write the configuration of a real site, to be edited."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import click

from gateway.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "site"


@click.command(
    epilog="""\b
Examples:
  mailward init /etc/mailward
  mailward init ./site"""
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def init(folder: Path) -> None:
    """Write a commented configuration of a real site into DIR/conf.d, where no file may be yet."""
    conf = folder / "conf.d"
    if conf.exists() and any(conf.iterdir()):
        raise ConfigError(f"{conf} is not empty: nothing was written")
    conf.mkdir(parents=True, exist_ok=True)
    values = {"hostname": _hostname(), "state": _state(folder), "address": _address()}
    for template in sorted(_TEMPLATES.glob("*.yaml")):
        (conf / template.name).write_text(template.read_text("utf-8").format(**values), "utf-8")
        click.echo(f"wrote {conf / template.name}")
    click.echo(f"Edit them; then  mailward check --conf {conf}  and  mailward run --conf {conf}")


def _hostname() -> str:
    name = socket.getfqdn()
    # Machines without a name of their own answer "localhost", or nothing that mail could use.
    return (
        name
        if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z][A-Za-z0-9-]*", name)
        else "mail.example.org"
    )


def _state(folder: Path) -> str:
    return "/var/lib/mailward" if folder.resolve().is_relative_to("/etc") else "var"


def _address() -> str:
    """Serve port 25 where we may, and one that anybody may open elsewhere."""
    return "*:25" if os.geteuid() == 0 else "*:2525"
