"""Which messages are meant, and who answers: what all commands of `mailward queue` share."""

from __future__ import annotations

import datetime as dt
import re
import sys
import time
import uuid
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import find_state, load
from gateway.errors import QueueError
from gateway.settings.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.queue import RecipientState

#: Ids that one call may name.
_IDS = 1000
#: Of an id.
_DIGITS = 32
_STATES: tuple[RecipientState, ...] = ("queued", "attempting", "held")
#: What the help of each command says below its options.
PATTERNS = """\b
Options that name messages narrow each other down. In PATTERN, * stands for any
characters and ? for one; the case of letters does not count. Without them it
must be the whole: --subject '*invoice*' finds a part. TIME is a time span (30m,
2h, 7d) or a moment (2026-11-22, '2026-11-22 14:30')."""


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which messages are meant; together they narrow down."""
    for option in (
        click.option("--since", metavar="TIME", help="Accepted since then."),
        click.option("--older-than", metavar="TIME", help="Accepted before then."),
        click.option("--state", type=click.Choice(_STATES), help="A recipient's."),
        click.option("--plugin", metavar="PATTERN", help="That delivers a recipient, or holds it."),
        click.option("--subject", metavar="PATTERN", help="Of the header, as a reader sees it."),
        click.option("--message-id", metavar="PATTERN", help="Of the header, without <>."),
        click.option("--user", metavar="PATTERN", help="Login that handed it in."),
        click.option("--client", metavar="ADDRESS", help="Host that handed it in: pattern or network."),
        click.option("--domain", metavar="PATTERN", help="Of a recipient, or where its route leads."),
        click.option("--recipient", metavar="PATTERN", help="As it came, or as it was rewritten."),
        click.option("--sender", metavar="PATTERN", help="`<>` is the sender of bounces."),
        click.option(
            "--id", "ids", multiple=True, metavar="ID", help="May be repeated; - reads them from stdin."
        ),
    ):
        command = option(command)
    return command


def wanted(
    ids: tuple[str, ...], older_than: str | None, since: str | None, **texts: str | None
) -> dict[str, Any]:
    """Make the arguments of a Filter, without what was not given."""
    found: dict[str, Any] = {}
    for name, text in texts.items():
        if text == "":
            # An empty variable of a script must not widen what it deletes.
            raise click.UsageError(f"--{name.replace('_', '-')} is empty; the null sender is '<>'")
        if text is not None:
            found[name] = _without_brackets(text)
    if ids:
        found["ids"] = list(_ids(ids))
        if not found["ids"]:
            raise click.UsageError("--id -: no id came on stdin")
    if older_than:
        found["born_before"] = _moment(older_than, "--older-than")
    if since:
        found["born_after"] = _moment(since, "--since")
    if "/" in found.get("client", ""):
        try:
            ip_network(found["client"], strict=False)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--client") from None
    return found


def ask(conf: Path | None, name: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Ask the running gateway, or the queue itself when none runs. Many ids make several calls."""
    from gateway import console

    state, _ = find_state(conf)
    # Once: who opens the queue himself is root no more, and may not read the folder again.
    configuration = None if console.running(state) else load(conf)
    ids = arguments.pop("ids", [])
    for some in [ids[at : at + _IDS] for at in range(0, len(ids), _IDS)] or [[]]:
        told = {**arguments, "ids": some} if ids else arguments
        if configuration is None:
            yield from console.call(state, name, **told)
        else:
            from gateway.commands.ownership import ask as ask_queue

            yield from ask_queue(configuration, name, told)


def whole_id(conf: Path | None, text: str) -> str:
    """Give the id of the one message in the queue that begins so; the text itself when there is none.

    Raises QueueError when there are several.
    """
    digits = text.lower().replace("-", "")
    if len(digits) >= _DIGITS or not re.fullmatch(r"[0-9a-f]+", digits):
        return text
    before = uuid.UUID(int=max(int(digits.ljust(_DIGITS, "0"), 16) - 1, 0))
    rows = ask(conf, "queue.list", after=str(before), limit=2)
    found = [row["id"] for row in rows if row["id"].startswith(text.lower())]
    if len(found) > 1:
        raise QueueError(f"{text}: several messages in the queue begin so, {' and '.join(found)} for example")
    return found[0] if found else text


def _ids(given: tuple[str, ...]) -> Iterator[str]:
    for one in given:
        if one != "-":
            yield one
        else:
            yield from (word for line in sys.stdin for word in line.split()[:1])


def _without_brackets(text: str) -> str:
    """Take an address or Message-ID as tables and headers show it."""
    return text[1:-1] if len(text) > len("<>") and text.startswith("<") and text.endswith(">") else text


def _moment(text: str, option: str) -> float:
    """Read a time span before now, or a moment in local time; seconds since the epoch."""
    if text[:4].isdigit() and text[4:5] == "-":
        try:
            return dt.datetime.fromisoformat(text).timestamp()
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=option) from None
    try:
        return time.time() - parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
