"""Describes a chain for people: who is asked where and why there, by which policy, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.hookspecs import SPECS
from gateway.isolation import Process
from gateway.settings.options import as_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.hookspecs import Spec
    from gateway.loader.build import Generation, Running
    from gateway.settings import Tree

Rows = list[dict[str, Any]]
#: Of several workers these are added up; of `longest` the largest counts.
_SUMS = ("asked", "answers", "faults", "timed", "seconds")


def describe(generation: Generation) -> Rows:
    """Give the stages in mail order, each with its plugins in the order in which they are asked."""
    figures = {(one.stage, one.plugin): one for one in generation.chain.figures()}
    return [
        {
            "stage": name,
            "kind": spec.kind,
            "silence": spec.silence,
            "plugins": [
                {
                    **_about(generation.plugins[stem]),
                    "order": generation.reasons[name, stem],
                    "calls": {key: getattr(figures[name, stem], key) for key in (*_SUMS, "longest")},
                }
                for stem in generation.order[name]
            ],
        }
        for name, spec in SPECS.items()
    ]


def together(workers: Iterable[Rows]) -> Rows:
    """Add up what several workers with one chain tell."""
    first, *others = workers
    for rows in others:
        for row, other in zip(first, rows, strict=True):
            for one, same in zip(row["plugins"], other["plugins"], strict=True):
                calls, more = one["calls"], same["calls"]
                calls |= {key: calls[key] + more[key] for key in _SUMS}
                calls["longest"] = max(calls["longest"], more["longest"])
    return first


def reasons(
    spec: Spec, stems: Iterable[str], running: Mapping[str, Running], tree: Tree
) -> dict[tuple[str, str], str]:
    """Say why each plugin stands where it does in a stage."""
    stems = list(stems)
    return {
        (spec.name, stem): ", ".join(_wishes(stem, stems, running[stem], tree))
        or ("the stage's order" if stem in spec.order else "by name")
        for stem in stems
    }


def _wishes(stem: str, stems: Iterable[str], plugin: Running, tree: Tree) -> Iterator[str]:
    for key in ("before", "after"):
        for number, other in enumerate(getattr(plugin.settings, key)):
            if other in stems:
                yield f"{key} {other} ({tree.place(stem, key, number)})"


def _about(plugin: Running) -> dict[str, Any]:
    settings, found = plugin.settings, plugin.found
    when = settings.when.model_dump(mode="json", include=set(settings.when.keys))
    return {
        "stem": found.stem,
        "origin": found.origin,
        "file": str(found.path),
        "on_error": settings.on_error,
        "dry_run": settings.dry_run,
        "deadline": settings.deadline,
        "when": as_yaml(when) if when else "",
        "isolation": settings.isolation,
        "pid": plugin.apart.pid if isinstance(plugin.apart, Process) else 0,
    }
