"""`mailward check`: all that is wrong with a configuration, then what is likely wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, json_option, load, print_json
from gateway.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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
        assembly = Assembly.of(load(conf))
    except ConfigError as error:
        if not as_json:
            raise
        print_json(_json(error.problems, "problem"))
        click.get_current_context().exit(1)
    found = asyncio.run(warnings(assembly))
    if as_json:
        print_json(_json(found, "warning"))
        return
    for problem in found:
        click.echo(f"warning: {problem}")
    plugins = len(assembly.generation.plugins)
    click.echo(
        f"{assembly.configuration.folder}: no problem, {_count(len(found), 'warning')}, {plugins} plugins"
    )


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
