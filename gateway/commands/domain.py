"""`mailward domain add`: one more virtual domain, in a file of its own."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, configuration_folder, load, program
from gateway.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gateway.errors import Place
    from gateway.worker import Configuration


@click.group(epilog="Example: mailward domain add example.com abc --home /srv/abc")
def domain() -> None:
    """Add virtual domains."""


@domain.command(
    epilog="""\b
Examples:
  mailward domain add example.com abc
  mailward domain add example.com abc --home /srv/abc"""
)
@click.argument("name", metavar="DOMAIN")
@click.argument("user")
@click.option("--home", type=click.Path(path_type=Path), help="Make USER a virtual account with this home.")
@conf_option
def add(name: str, user: str, home: Path | None, conf: Path | None) -> None:
    """Give DOMAIN to the account USER, by a file conf.d/domain-DOMAIN.yaml; then reload."""
    from gateway.address import lower
    from gateway.commands.assembly import apart

    name = lower(name)
    if not re.fullmatch(r"\.?[^\s@:/.]+(\.[^\s@:/.]+)*", name):
        raise click.BadParameter("write example.org, or .example.org for all below it", param_hint="DOMAIN")
    folder = configuration_folder(conf)
    file = folder / f"domain-{name}.yaml"
    text = _text(name, user, home)
    apart(lambda: _refuse_known(load(conf), name))
    for warning in apart(lambda: _check(load(conf), file, text, user)):
        click.echo(f"warning: {warning}")
    _write(file, text)
    click.echo(f"wrote {file}")
    click.echo(f"Next:  {program()} reload" + (f" --conf {conf}" if conf else ""))


def _refuse_known(now: Configuration, name: str) -> list[str]:
    """Refuse a domain that is ours already. Raises ConfigError with its place."""
    from gateway.commands.assembly import Assembly
    from gateway.commands.warnings import local_domains, virtual_domains

    assembly = Assembly.of(now)
    virtual, local = virtual_domains(assembly), local_domains(assembly)
    if name in virtual:
        account, place = virtual[name]
        raise ConfigError(Problem(f"{name} is a virtual domain already, and belongs to {account}", place))
    if name in local:
        raise ConfigError(Problem(f"{name} is a local domain already", local[name]))
    return []


def _text(name: str, user: str, home: Path | None) -> str:
    from gateway.settings.options import as_yaml

    lines = [
        "# Written by `mailward domain add`.",
        "virtual_domains:",
        "  domains:",
        f"    {as_yaml(name)}: {as_yaml(user)}",
        "rcpthosts:",
        f"  domains: [{as_yaml(name)}]",
    ]
    if home:
        lines += [
            "accounts:",
            "  virtual:",
            f"    {as_yaml(user)}: {{home: {as_yaml(str(home.absolute()))}}}",
        ]
    return "\n".join([*lines, ""])


def _check(now: Configuration, file: Path, text: str, user: str) -> list[str]:
    """Check a copy with the new file; gives the warnings for that file and user. Raises ConfigError."""
    from gateway.commands.assembly import Assembly
    from gateway.commands.homes import undelivered
    from gateway.commands.warnings import warnings
    from gateway.worker import Configuration

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / file.parent.name
        shutil.copytree(file.parent, copy)
        (copy / file.name).write_text(text, "utf-8")
        configuration = Configuration.load(copy, now.tree.base)
    owner = configuration.tree.place("accounts", "virtual", user)
    found = [one for one in undelivered(configuration) if one.place == owner]
    found += [one for one in asyncio.run(warnings(Assembly.of(configuration))) if _in(file, one.place)]
    return [str(one) for one in found]


def _in(file: Path, place: Place | None) -> bool:
    return place is not None and Path(place.file).name == file.name


def _write(file: Path, text: str) -> None:
    """Put the whole file there at once, so that a reload sees all of it or nothing. Raises ConfigError."""
    new = file.with_name(f".{file.name}.new")
    with new.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(new, file)
    except FileExistsError:
        raise ConfigError(f"{file} is there already: nothing was written") from None
    finally:
        new.unlink()
