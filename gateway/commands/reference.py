"""Writes reference pages from the code, so that they cannot differ from it."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from gateway import events
from gateway.commands.stage_page import stages_page
from gateway.plugin import Section
from gateway.settings import Settings, describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.settings.options import Option

_EVENTS_HEAD = """\
# Events

Every event is one line of JSON. It begins with `time` (RFC 3339, UTC, microseconds), `event` (its name),
`schema`, `severity`, `class`, `host`, `stream`, `sequence` (no gap within a stream, also over restarts) and
`id`. A field that is empty is left out.

The class says how much an event matters: `fate` is what became of a message, `security` who tried what,
`other` the rest. Events of the names marked "once" have an `id` made from message, recipient and attempt: a
second one with the same `id` is a repeat of the same fact and may be dropped.

This page is made from `gateway/events.py` by `make docs`.
"""
_SETTINGS_HEAD = """\
# Settings

All of `conf.d/*.yaml` counts, in the order of the file names: mappings merge, lists append, and a later
single value replaces an earlier one; `!replace` before a list or mapping begins afresh. A key that is not
here is an error.

Times are written `30s`, `5m`, `2h`, `7d`; sizes `500K`, `10M`, `1G`; addresses `127.0.0.1:25`, `*:25` (all
addresses of both families), `[::1]:25`, `unix:/path`. Relative paths start at the folder that holds
`conf.d`. `X_file: PATH` gives a secret `X` from the first line of a file.

`mailward settings` prints the values in use and where each comes from. This page is made from the code by
`make docs`.
"""
_COMMANDS_HEAD = """\
# Commands

`mailward COMMAND --help` prints the same, with examples. `--conf DIR` names the folder of the
configuration; without it `$MAILWARD_CONF` counts, and then `/etc/mailward/conf.d`.

A command ends with 0 when it is done, 1 when it was refused or failed, and 2 when it was called wrongly.

This page is made from the commands by `make docs`.
"""
_DIFFERENCES_HEAD = """\
# Where Mailward differs from qmail on purpose

Recorded runs of the real qmail are played against Mailward (`tests/conformance`). It does what qmail did,
but for what follows. Each line is a rule that those tests know; what none of them covers has to be the same.

This page is made from `tests/conformance/differences.yaml` by `make docs`.
"""
#: In the order of a message's way; the groups are those of the recorded runs.
_GROUPS = {
    "rcpthosts": "Taking mail by SMTP",
    "tcprules": "tcpserver's rules",
    "queue": "qmail-queue",
    "inject": "qmail-inject",
    "routing": "Where an address leads",
    "users": "Accounts",
    "dotqmail": "`.qmail` files and deliveries on this host",
    "remote": "Deliveries to other hosts",
    "retry": "When a delivery is tried again",
    "bounce": "Bounces",
    "tools": "Small programs",
}
_DIFFERENCES = Path(__file__).parents[2] / "tests" / "conformance" / "differences.yaml"


def pages() -> dict[str, str]:
    """Give file name -> text of every page of the reference."""
    return {
        "commands.md": commands_page(),
        "events.md": events_page(),
        "qmail-differences.md": differences_page(_DIFFERENCES),
        "settings.md": settings_page(),
        "stages.md": stages_page(),
    }


def settings_page() -> str:
    """Write `docs/reference/settings.md`."""
    models = bundled_settings()
    common = describe(Section)
    names = {option.name.split(".")[0] for option in common}
    parts = [_SETTINGS_HEAD]
    for section in Settings.model_fields:
        mine = [one for one in describe(Settings) if one.name.split(".")[0].removesuffix("[]") == section]
        parts += [f"## {section}\n", *_options(mine), ""]
    parts += ["## Every plugin\n", "Each plugin's section takes these, besides its own keys below.\n"]
    parts += [*_options(common), ""]
    for stem, model in models.items():
        own = [option for option in describe(model, f"{stem}.") if option.name.split(".")[1] not in names]
        parts += [f"## {stem}\n", f"[What it does](../plugins/{stem}.md).\n"]
        parts += [*(_options(own) if own else ["No keys of its own."]), ""]
    return "\n".join(parts).rstrip() + "\n"


def bundled_settings() -> dict[str, type[Section]]:
    """Run the files of the bundled plugins, and give stem -> the model of its section."""
    from gateway.loader import discover, settings_of

    return {stem: settings_of(found) for stem, found in discover((), set(), {}).items()}


def _options(options: Iterable[Option]) -> Iterator[str]:
    yield "| key | what may be written | default | |\n|---|---|---|---|"
    for one in options:
        default = (
            "required" if one.required else "" if one.default in (None, "None") else f"`{_cell(one.default)}`"
        )
        yield f"| `{one.name}` | {_cell(one.type)} | {default} | {_cell(one.comment)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands_page() -> str:
    """Write `docs/reference/commands.md`."""
    from gateway.commands.group import COMMANDS, command_of

    parts = [_COMMANDS_HEAD]
    for name in COMMANDS:
        parts += _command(command_of(name), f"mailward {name}")
    return "\n".join(parts).rstrip() + "\n"


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"## {path}\n\n`{usage}`\n\n{inspect.cleandoc(command.help or '')}\n"
    for one in command.params:
        if isinstance(one, click.Option):
            yield f"- `{', '.join(one.opts)}`: {one.help}"
    yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _command(inner, f"{path} {name}")


def differences_page(rules: Path) -> str:
    """Write `docs/reference/qmail-differences.md` from the rules of the conformance tests."""
    known = yaml.safe_load(rules.read_text("utf-8"))
    parts = [_DIFFERENCES_HEAD]
    for group, title in _GROUPS.items():
        reasons = dict.fromkeys(rule["reason"] for rule in known if rule["group"] == group)
        lines = [f"- {one[:1].upper()}{one[1:].rstrip('.')}." for one in reasons]
        parts += [f"## {title}\n", *lines, ""] if lines else []
    return "\n".join(parts).rstrip() + "\n"


def events_page() -> str:
    """Write `docs/reference/events.md`."""
    classes = {node.name: node for node in ast.parse(_source()).body if isinstance(node, ast.ClassDef)}
    parts = [_EVENTS_HEAD, "## What every event may carry\n", *_rows(classes["Event"], events.Event)]
    for name, cls in sorted(events.VOCABULARY.items()):
        once = ", once" if cls.ONCE else ""
        parts += [f"\n## `{name}`\n", f"{cls.CLASS}, {cls.SEVERITY}{once}. {inspect.getdoc(cls)}\n"]
        parts += _rows(classes[cls.__name__], cls)
    return "\n".join(parts).rstrip() + "\n"


def _rows(node: ast.ClassDef, cls: type[events.Event]) -> Iterator[str]:
    """Write the fields that a class adds as a table, with their `#:` comments."""
    lines = _source().splitlines()
    own = [one for one in node.body if isinstance(one, ast.AnnAssign) and _is_field(one)]
    if own:
        yield "| field | type | |\n|---|---|---|"
    keys = dict(zip((one.name for one in fields(cls)), cls.KEYS, strict=True))
    for one in own:
        kind = ast.unparse(one.annotation).replace("|", "or")
        yield f"| `{keys[ast.unparse(one.target)]}` | {kind} | {_comment(lines, one.lineno)} |"


def _is_field(node: ast.AnnAssign) -> bool:
    return not ast.unparse(node.annotation).startswith("ClassVar")


def _comment(lines: list[str], number: int) -> str:
    """Give the `#:` comment that stands above a line."""
    found: list[str] = []
    while (above := lines[number - 2].strip()).startswith("#:"):
        found.insert(0, above[2:].strip())
        number -= 1
    return " ".join(found)


def _source() -> str:
    return inspect.getsource(events)


def main(folder: Path) -> None:
    """Write every page into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
