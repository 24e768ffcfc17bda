"""`mailward stages`: the chain as it will be asked, and what the running gateway's has done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gateway import console
from gateway.commands.common import conf_option, json_option, load, print_json, print_table
from gateway.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ASKED = ("asked", "answers", "faults")


@click.command(
    epilog="""\b
Examples:
  mailward stages
  mailward stages --json"""
)
@conf_option
@json_option
def stages(conf: Path | None, as_json: bool) -> None:
    """Show which plugins are asked at each stage, in order and why so, and where each comes from.

    That is the chain that the configuration makes. Where the running gateway has the same one, each plugin's
    calls since the last reload stand beside it: how often it was asked, answered and failed, and the mean and
    the longest time of a call. The first calls are all timed, then one in 64.
    """
    from gateway.commands.assembly import Assembly
    from gateway.loader import describe

    configuration = load(conf)
    running = _running(configuration.settings.gateway.state)
    rows = describe(Assembly.of(configuration).generation)
    same = running is not None and _chain(running) == _chain(rows)
    if running is not None and same:
        rows = running
    if as_json:
        print_json(rows)
    else:
        names = ("stage", "if nobody speaks", "plugin", "from", "order", "policy")
        print_table((*names, *_ASKED, "mean", "longest") if same else names, _lines(rows, counts=same))
    if running is not None and not same:
        click.echo("The running gateway has another chain: `mailward reload` gives it this one.", err=True)


def _lines(rows: list[dict[str, Any]], *, counts: bool) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if not row["plugins"]:
            yield (row["stage"], row["silence"], "-", *[""] * (8 if counts else 3))
        for one in row["plugins"]:
            line = (row["stage"], row["silence"], one["stem"], one["origin"], one["order"], _policy(one))
            yield (*line, *_counts(one["calls"])) if counts else line


def _policy(one: dict[str, Any]) -> str:
    """Write what differs from the usual."""
    words = [
        "dry run" if one["dry_run"] else "",
        f"on_error: {one['on_error']}" if one["on_error"] != "defer" else "",
        f"when: {one['when']}" if one["when"] else "",
        f"isolation: {one['isolation']}" if one["isolation"] != "inline" else "",
        f"(pid {one['pid']})" if one["pid"] else "",
    ]
    return ", ".join(filter(None, words)).replace(", (pid", " (pid")


def _counts(calls: dict[str, Any]) -> list[str]:
    counts = [str(calls[key]) for key in _ASKED]
    if not calls["timed"]:
        return [*counts, "", ""]
    return [*counts, _time(calls["seconds"] / calls["timed"]), _time(calls["longest"])]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"  # noqa: PLR2004


def _running(state: Path) -> list[dict[str, Any]] | None:
    """Ask the running gateway for its stages; None when there is none."""
    try:
        return list(console.call(state, "stages"))
    except ControlError:
        return None


def _chain(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Give what makes two chains the same: who is asked where, from which file and by which policy."""
    left_out = ("calls", "pid", "order")
    return {
        row["stage"]: [{k: v for k, v in one.items() if k not in left_out} for one in row["plugins"]]
        for row in rows
    }
