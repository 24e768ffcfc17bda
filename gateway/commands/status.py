"""`mailward status`: one screen of health."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from gateway import console
from gateway.commands.common import age, conf_option, find_state, json_option, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@click.command(
    epilog="""\b
Examples:
  mailward status
  mailward status --json"""
)
@conf_option
@json_option
def status(conf: Path | None, as_json: bool) -> None:
    """Show the health of the running gateway; exit 1 when it is ill or does not run.

    A folder that does not load any more is shown, and no illness: the gateway goes on with what it has read.
    `mailward check` exits 1 for it.
    """
    state, broken = find_state(conf)
    if broken and not console.running(state):
        raise broken
    (found,) = console.call(state, "status")
    found["problems"] = [str(one) for one in broken.problems] if broken else []
    if as_json:
        print_json([found])
    else:
        print_table(("", ""), _lines(found))
    if found["journal"]["full"] or not all(one["serves"] for one in found["workers"]):
        click.get_current_context().exit(1)


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    now = time.time()
    yield "gateway", f"{found['hostname']}, version {found['version']}, pid {found['pid']}"
    yield "up", f"{age(found['seconds'])}, configuration {found['generation']} from {found['configuration']}"
    for problem in found["problems"]:
        yield "the folder does not load", problem
    for listener in found["listeners"]:
        yield "listener", listener
    for worker in found["workers"]:
        yield "worker", _worker(worker)
    yield "sessions", str(found["sessions"])
    states: Counter[str] = Counter()
    for row in found["queue"]:
        states[row["state"]] += row["recipients"]
    yield "queue", ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "empty"
    if found["queue"]:
        yield "oldest", age(now - min(row["oldest"] for row in found["queue"]))
    for one in found["suspended"]:
        yield "suspended", _suspension(one, now)
    journal = found["journal"]
    yield "journal", f"{'CANNOT BE WRITTEN' if journal['full'] else 'well'}, {journal['folder']}"
    yield "last error", _error(found["last_error"])


def _suspension(one: dict[str, Any], now: float) -> str:
    ends = f"in {age(one['until'] - now)}" if one["until"] else "by `mailward queue resume`"
    return f"{one['destination']}, ends {ends}{': ' if one['reason'] else ''}{one['reason']}"


def _worker(one: dict[str, Any]) -> str:
    if not one["serves"]:
        return f"{one['worker']} DOES NOT SERVE"
    return f"{one['worker']}, pid {one['pid']}, up {age(one['seconds'])}, {one['sessions']} sessions"


def _error(event: dict[str, Any] | None) -> str:
    if event is None:
        return "none"
    problems = "; ".join(event.get("problems", ()))
    said = event.get("error") or event.get("reason") or event.get("text") or problems
    return " ".join(filter(None, (f"{event['time'][:19]}Z", event["event"], event.get("plugin"), said)))
