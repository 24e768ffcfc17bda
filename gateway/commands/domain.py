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
    from gateway.commands.assembly import Assembly
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
    """Give DOMAIN to the account USER, by a file conf.d/domain-DOMAIN.yaml; then reload.

    One with letters beyond ASCII is written in both forms, since senders write both: bücher.example and
    xn--bcher-kva.example.
    """
    from gateway.commands.assembly import apart

    name = name.lower()
    if not re.fullmatch(r"\.?[^\s@:/.]+(\.[^\s@:/.]+)*", name):
        raise click.BadParameter("write example.org, or .example.org for all below it", param_hint="DOMAIN")
    names = _spellings(name)
    folder = configuration_folder(conf)
    file = folder / f"domain-{name}.yaml"
    text = _text(names, user, home)
    apart(lambda: _refuse_known(load(conf), names))
    for warning in apart(lambda: _check(load(conf), file, text, (name, user))):
        click.echo(f"warning: {warning}")
    _write(file, text)
    click.echo(f"wrote {file}")
    click.echo(f"Next:  {program()} reload" + (f" --conf {conf}" if conf else ""))


def _spellings(name: str) -> list[str]:
    """Give a domain as it was written, and in the other form where letters beyond ASCII are in it.

    Senders write both: few with SMTPUTF8 and the letters, most without (RFC 6531 section 3.7.1).
    """
    from dns.exception import DNSException
    from dns.name import IDNA_2008_Practical, from_text

    dot = "." if name.startswith(".") else ""
    try:
        found = from_text(name.removeprefix("."), idna_codec=IDNA_2008_Practical)
        other = found.to_unicode(omit_final_dot=True, idna_codec=IDNA_2008_Practical)
    except DNSException as error:
        raise click.BadParameter(f"{name} is no domain name: {error}", param_hint="DOMAIN") from None
    return list(dict.fromkeys((name, f"{dot}{found.to_text(omit_final_dot=True)}", f"{dot}{other}")))


def _refuse_known(now: Configuration, names: list[str]) -> list[str]:
    """Refuse a domain that is ours already. Raises ConfigError with its place."""
    from gateway.commands.assembly import Assembly
    from gateway.commands.warnings import local_domains, virtual_domains

    assembly = Assembly.of(now)
    virtual, local = virtual_domains(assembly), local_domains(assembly)
    for name in names:
        if name in virtual:
            account, place = virtual[name]
            raise ConfigError(Problem(f"{name} is a virtual domain already, and belongs to {account}", place))
        if name in local:
            raise ConfigError(Problem(f"{name} is a local domain already", local[name]))
    return []


def _text(names: list[str], user: str, home: Path | None) -> str:
    from gateway.settings.options import as_yaml

    lines = [
        "# Written by `mailward domain add`.",
        "virtual_domains:",
        "  domains:",
        *(f"    {as_yaml(name)}: {as_yaml(user)}" for name in names),
        "rcpthosts:",
        f"  domains: [{', '.join(map(as_yaml, names))}]",
    ]
    if home:
        lines += [
            "accounts:",
            "  virtual:",
            f"    {as_yaml(user)}: {{home: {as_yaml(str(home.absolute()))}}}",
        ]
    return "\n".join([*lines, ""])


def _check(now: Configuration, file: Path, text: str, new: tuple[str, str]) -> list[str]:
    """Check a copy with the new file; gives the warnings for that file and user. Raises ConfigError."""
    from gateway.commands.assembly import Assembly
    from gateway.commands.homes import undelivered
    from gateway.worker import Configuration

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / file.parent.name
        shutil.copytree(file.parent, copy)
        (copy / file.name).write_text(text, "utf-8")
        configuration = Configuration.load(copy, now.tree.base)
    owner = configuration.tree.place("accounts", "virtual", new[1])
    found = [one for one in undelivered(configuration) if one.place == owner]
    said = asyncio.run(_warnings(Assembly.of(configuration), *new))
    return [str(one) for one in (*found, *said) if one.place == owner or _in(file, one.place)]


async def _warnings(assembly: Assembly, name: str, user: str) -> list[Problem]:
    """Give all warnings. Raises ConfigError for an account that nobody knows."""
    from gateway.commands.warnings import UNKNOWN, account_of, address_in, warnings

    account, doubt = await account_of(assembly, user, address_in(name))
    if account is None and not doubt:
        raise ConfigError(f"{user} is {UNKNOWN}, or give it a home with --home; nothing was written")
    return await warnings(assembly)


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
