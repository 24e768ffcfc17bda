"""`mailward check`: all that is wrong with a configuration, then what is likely wrong."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, json_option, load, print_json
from gateway.commands.homes import programs, refused, undelivered
from gateway.console import GROUP
from gateway.errors import ConfigError, Problem
from gateway.partition.privilege import user_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.configuration import Configuration


@click.command(
    epilog="""\b
Examples:
  mailward check
  mailward check --conf ./site/conf.d"""
)
@conf_option
@json_option
def check(conf: Path | None, as_json: bool) -> None:
    """Check the configuration: every problem by file and line, then warnings.

    Exit 1 with problems, which keep a gateway from starting or reloading; 0 without, also with warnings.
    """
    from gateway.commands.assembly import Assembly
    from gateway.commands.warnings import warnings

    try:
        configuration = load(conf)
        as_root = os.geteuid() == 0
        found = _user(configuration) if as_root else list(undelivered(configuration))
        # From here on without rights.
        assembly = Assembly.of(configuration)
        if as_root:
            found += programs(configuration)
    except ConfigError as error:
        if not as_json:
            raise
        print_json(_json(error.problems, "problem"))
        click.get_current_context().exit(1)
    found += asyncio.run(warnings(assembly))
    if as_json:
        print_json(_json(found, "warning"))
        return
    for problem in found:
        click.echo(f"warning: {problem}")
    plugins = len(assembly.generation.plugins)
    click.echo(
        f"{assembly.configuration.folder}: no problem, {_count(len(found), 'warning')}, {plugins} plugins"
    )


def _user(configuration: Configuration) -> list[Problem]:
    """Warn where root could not run this, or become an account, or those who shall ask the gateway could not.

    Raises ConfigError for a user whom nobody can become. To have none is no problem: a unit may name it.
    """
    name, place = configuration.settings.gateway.user, configuration.tree.place("gateway", "user")
    try:
        user = user_of(name, place)
    except ConfigError as error:
        if name:
            raise
        return list(error.problems)
    found = list(refused(configuration, user))
    with contextlib.suppress(KeyError):
        if grp.getgrnam(GROUP).gr_gid not in os.getgrouplist(name, user.pw_gid):
            text = f"gateway.user: {name} is not in {GROUP}, so its members may not ask the gateway"
            found.append(Problem(text, place))
    return found


def _json(problems: Sequence[Problem], kind: str) -> list[dict[str, object]]:
    return [
        {
            "kind": kind,
            "message": one.message,
            "file": one.place.file if one.place else "",
            "line": one.place.line if one.place else 0,
        }
        for one in problems
    ]


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
