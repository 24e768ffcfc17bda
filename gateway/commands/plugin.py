"""`mailward plugin`: write a plugin, try one, and see which there are."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import conf_option, json_option, load, plain, print_json, print_table
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.commands.assembly import Assembly
    from gateway.loader import Found, Running
    from gateway.testing import Heard, Letter

_TEMPLATES = Path(__file__).parent / "template"
#: Template -> the file that it becomes.
_FILES = {
    "plugin.py.txt": "{}.py",
    "settings.yaml.txt": "{}.yaml",
    "test.py.txt": "test_{}.py",
    "page.md.txt": "{}.md",
}


@click.group(
    epilog="""\b
Examples:
  mailward plugin new no_fridays
  mailward plugin test no_fridays --eml message.eml --sender ann@example.com
  mailward plugin show no_fridays"""
)
def plugin() -> None:
    """Write a plugin, try one, and see which there are."""


@plugin.command(epilog="Example: mailward plugin new no_fridays --into ./site")
@click.argument("name")
@click.option(
    "--into",
    "folder",
    default=".",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write to; this one unless given.",
)
def new(name: str, folder: Path) -> None:
    """Write a plugin that works, with its settings, its test and its page; nothing is overwritten."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name.startswith("test_"):
        raise click.BadParameter("a plugin's name is [a-z][a-z0-9_]*, such as no_fridays", param_hint="NAME")
    files = {template: folder / to.format(name) for template, to in _FILES.items()}
    if there := [str(path) for path in files.values() if path.exists()]:
        raise ConfigError(f"{', '.join(there)}: there already; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    words = {"stem": name, "name": "".join(word.capitalize() for word in name.split("_"))}
    for template, path in files.items():
        path.write_text(Template((_TEMPLATES / template).read_text("utf-8")).substitute(words), "utf-8")
        # Whatever the umask is: the loader takes no file that others may write.
        path.chmod(0o644)
        click.echo(f"wrote {path}")
    click.echo(f"Try it:  python -m pytest {files['test.py.txt']}")


@plugin.command("list", epilog="Example: mailward plugin list --json")
@conf_option
@json_option
def list_(conf: Path | None, as_json: bool) -> None:
    """List all plugins: where each comes from, and whether it runs here."""
    from gateway.commands.assembly import Assembly

    assembly = Assembly.of(load(conf))
    rows = [_row(assembly, found) for found in _found(assembly).values()]
    if as_json:
        print_json(rows)
    else:
        columns = ("plugin", "origin", "runs", "why", "file")
        print_table(columns, ([row[key] for key in columns] for row in rows))


@plugin.command(epilog="Example: mailward plugin show virtual_domains")
@click.argument("name")
@conf_option
@json_option
def show(name: str, conf: Path | None, as_json: bool) -> None:
    """Show what a plugin does, the stages it speaks at, and its settings with where each comes from."""
    from gateway.commands.assembly import Assembly

    assembly = Assembly.of(load(conf))
    running = _running(assembly, name)
    row = _row(assembly, running.found)
    row["about"] = _about(running.found.path)
    row["stages"] = [stage for stage, stems in assembly.generation.order.items() if name in stems]
    row["settings"] = list(_settings(assembly, running))
    if as_json:
        print_json([row])
        return
    click.echo(f"{plain(row['file'])} ({row['origin']}, {row['why']})\n\n{row['about']}\n")
    click.echo(f"Speaks at: {', '.join(row['stages'])}\n")
    for one in row["settings"]:
        click.echo(f"{one['key']}: {one['value']}    # {one['type']}; from {one['from']}")
        click.echo(f"    {one['comment']}")


@plugin.command(
    epilog="Example: mailward plugin test no_fridays --sender news@example.com --client 192.0.2.7"
)
@click.argument("name")
@click.option(
    "--eml", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A message in a file."
)
@click.option("--sender", default="sender@example.com", metavar="ADDRESS", help="The envelope sender.")
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    default=("info@example.org",),
    metavar="ADDRESS",
    help="May be given several times.",
)
@click.option("--client", default="192.0.2.7", metavar="IP", help="The client's address.")
@click.option("--helo", default="client.example", metavar="NAME", help="What the client says at EHLO.")
@conf_option
@json_option
def test(name: str, conf: Path | None, as_json: bool, **envelope: Any) -> None:
    """Ask a plugin, with the settings of this configuration, at each of its stages; nothing is delivered.

    Each stage is asked, whatever the one before it said. Exit 1 when the plugin fails.
    """
    from gateway.commands.assembly import Assembly

    letter = _letter(**envelope)
    assembly = Assembly.of(load(conf))
    running = _running(assembly, name)
    heard, told = asyncio.run(_replay(assembly, name, letter))
    rows = [_said(assembly, one) for one in heard] + _not_asked(assembly, name)
    if as_json:
        print_json(rows)
    else:
        columns = ("stage", "about", "says")
        print_table(columns, ([row[key] for key in columns] for row in rows))
        for line in (line for row in rows for line in row["edit"]):
            click.echo(plain(line))
    for line in told:
        click.echo(f"{running.found.path}: {line}", err=True)
    if told or any(one.failed for one in heard):
        click.get_current_context().exit(1)


def _letter(eml: Path | None, sender: str, recipients: tuple[str, ...], client: str, helo: str) -> Letter:
    from gateway.services import is_ip
    from gateway.testing import Letter, message, read_message

    if not is_ip(client):
        raise click.BadParameter("should be an IP address such as 192.0.2.7", param_hint="--client")
    return Letter(read_message(eml) if eml else message(), sender, recipients, client, helo)


async def _replay(assembly: Assembly, name: str, letter: Letter) -> tuple[list[Heard], list[str]]:
    """Start the plugin, ask it, end it; gives what it said, and what went wrong beside its answers."""
    from gateway.chain import Chain
    from gateway.hookspecs import Stages
    from gateway.testing import replay

    chain = assembly.generation.chain
    try:
        await chain.life(name, Stages.startup)
    except Exception as error:  # noqa: BLE001 - whatever it raises is told
        return [], [f"startup failed: {type(error).__name__}: {error}"]
    # What a dry run would say is what is asked for here, and a fault that would be skipped is one.
    steps = {
        stage: [replace(step, dry_run=False, skip=False) for step in all_]
        for stage, all_ in chain.steps.items()
    }
    heard = await replay(Chain(chain.specs, steps, assembly.emitted.append), letter, name)
    await chain.life(name, Stages.shutdown, quiet=True)
    await chain.drain()
    return heard, assembly.logged


def _said(assembly: Assembly, one: Heard) -> dict[str, Any]:
    """Write one answer; an edit as the lines of the header that came and went."""
    says = f"failed: {assembly.failure(one.plugin)}" if one.failed else _words(one)
    edit = [f"{one.stage}: {line}" for line in one.changes()]
    return {"stage": one.stage, "about": one.about, "says": says, "failed": one.failed, "edit": edit}


def _not_asked(assembly: Assembly, name: str) -> list[dict[str, Any]]:
    """Name the stages that were left out, since they would have done something."""
    from gateway.testing.replay import REACHING

    row = {"about": "", "says": "not asked: it would reach beyond the chain", "failed": False, "edit": []}
    order = assembly.generation.order
    return [{"stage": one, **row} for one in order if one in REACHING and name in order[one]]


def _words(one: Heard) -> str:
    """Write an answer for a person."""
    if one.edited is not None and one.stage in ("incoming", "outgoing"):
        return "edits the message"
    silent = one.value is None or one.stage in ("incoming", "outgoing")
    said = "nothing" if silent else _value(one.value)
    return f"{said}, and edits the message" if one.edited is not None else said


def _value(value: Any) -> str:
    """Write a decision as `Reject 5.7.1 text (reason) by rule`, and anything else as Python does."""
    from gateway.decision import Accept, Discard, Hold

    if isinstance(value, dict):
        return ", ".join(f"{address}: {_value(one)}" for address, one in value.items())
    if isinstance(value, Discard | Hold):
        return f"{type(value).__name__} ({value.reason})"
    rule = f" by {value.rule}" if getattr(value, "rule", "") else ""
    if isinstance(value, Accept):
        return f"Accept{rule}"
    if hasattr(value, "status") and hasattr(value, "text"):
        reason = f" ({value.reason})" if getattr(value, "reason", "") else ""
        return f"{type(value).__name__} {value.status} {value.text}{reason}{rule}"
    return repr(value)


def _found(assembly: Assembly) -> dict[str, Found]:
    """Find every plugin, also what does not run."""
    from gateway.loader import discover

    tree, settings = assembly.configuration.tree, assembly.configuration.settings
    sections = set(tree.sections())
    given = {name: tree.text(name, "distribution") for name in sections}
    return discover(settings.plugins.folders, sections, given)


def _row(assembly: Assembly, found: Found) -> dict[str, Any]:
    runs = found.stem in assembly.generation.plugins
    file = str(found.path.parent if found.path.name == "__init__.py" else found.path)
    why = _why(assembly, found, runs=runs)
    return {
        "plugin": found.stem,
        "origin": found.origin,
        "runs": "yes" if runs else "no",
        "why": why,
        "file": file,
    }


def _why(assembly: Assembly, found: Found, *, runs: bool) -> str:
    from gateway.loader import CORE

    tree = assembly.configuration.tree
    if not runs and tree.text(found.stem, "enabled") == "false":
        return f"{tree.place(found.stem, 'enabled')}: enabled: false"
    if found.replaces:
        return f"replaces {found.replaces}"
    if found.origin == "site":
        return "its file is present"
    if found.stem in CORE:
        return "core"
    return f"section at {tree.place(found.stem)}" if runs else "has no section"


def _running(assembly: Assembly, name: str) -> Running:
    """Find a plugin that runs. Raises ConfigError."""
    from gateway.settings.faults import hint

    if name in assembly.generation.plugins:
        return assembly.generation.plugins[name]
    found = _found(assembly)
    if name in found:
        why = _why(assembly, found[name], runs=False)
        raise ConfigError(f"{name} does not run here: {why}; write `{name}: {{}}` into conf.d to run it")
    raise ConfigError(f"no plugin {name} is here{hint(name, found)}")


def _about(path: Path) -> str:
    return inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "(no docstring)")


def _settings(assembly: Assembly, running: Running) -> Iterator[dict[str, str]]:
    """Give each setting with its value, its type, its comment and where its value comes from."""
    from gateway.plugin import Section
    from gateway.settings.options import as_yaml, describe

    stem = running.found.stem
    options = {one.name: one for one in describe(type(running.settings), f"{stem}.")}
    values = list(assembly.configuration.tree.effective(running.settings, stem))
    # Its own first; what every plugin takes stands behind.
    values.sort(key=lambda one: one[0].split(".")[1] in Section.model_fields)
    for key, value, place in values:
        one = options.get(key) or options.get(re.sub(r"\[\d+\]", "", key))
        kind, comment = (one.type, one.comment) if one else ("", "")
        yield {"key": key, "value": as_yaml(value), "type": kind, "comment": comment, "from": str(place)}
