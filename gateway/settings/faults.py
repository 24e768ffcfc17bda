"""What pydantic finds wrong, in an admin's words: where, what should stand there, what was meant."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import Place, Problem
from gateway.settings.options import models_in, secrets_of
from gateway.settings.yamltree import Node, dotted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pydantic import BaseModel, ValidationError

Steps = tuple[str | int, ...]

_SHAPES = {
    "a list": ("list_type", "tuple_type", "set_type", "frozen_set_type"),
    "a mapping": ("dict_type", "model_type", "model_attributes_type", "dataclass_type"),
    "a number": ("float_type", "float_parsing"),
    "a path": ("path_type",),
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "text": ("string_type",),
    "true or false": ("bool_type", "bool_parsing"),
}
#: pydantic's subject of a sentence; ours is the path in front of it.
_SUBJECT = re.compile(r"^(?:Value error, |(?:Input|List|Dictionary|Tuple|Set|String) (?=should))")
_SHAPE = {kind: words for words, kinds in _SHAPES.items() for kind in kinds}


class _Fault(NamedTuple):
    """One of pydantic's errors, put into our words."""

    path: Steps
    kind: str
    message: str
    place: Place | None


def problems_of(error: ValidationError, model: type[BaseModel], root: Node, prefix: Steps) -> list[Problem]:
    """Say what is wrong, once for each place. What was written is not repeated: it may be a secret."""
    details = error.errors(include_url=False, include_input=False)
    faults = [
        _fault(detail, model, root) for detail in details if detail["type"] != "default_factory_not_called"
    ]
    # Of the members of a union the one that fits to a greater depth is the one that was meant.
    shallow = {fault.path[:depth] for fault in faults for depth in range(len(fault.path))}
    found: dict[Steps, list[_Fault]] = {}
    for fault in faults:
        if fault.path not in shallow:
            found.setdefault(fault.path, []).append(fault)
    problems = [
        Problem(f"{dotted((*prefix, *path))}: {_join(_meant(same))}", same[0].place)
        for path, same in found.items()
    ]
    return sorted(problems, key=lambda problem: problem.place or Place(""))


def _meant(faults: list[_Fault]) -> Iterable[str]:
    """Leave out the members of a union that want another shape, when one has the right shape."""
    fitting = [fault for fault in faults if fault.kind not in _SHAPE]
    precise = any(fault.kind != "literal_error" for fault in fitting)
    return [fault.message for fault in (fitting if precise else faults)]


def _join(messages: Iterable[str]) -> str:
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(text.removeprefix("should be ") for text in others)])


def _fault(detail: Any, model: type[BaseModel], root: Node) -> _Fault:
    """Follow pydantic's path through the models and the tree at once; names of union members are neither."""
    path: list[str | int] = []
    shown, here, fields = root, root, _fields([model])
    names: Collection[str] = fields
    models = [model]
    for step in (*detail["loc"], *detail.get("ctx", {}).get("at", ())):
        names = fields
        child = here.child(step)
        if child or step in fields:
            path.append(step)
            shown = child or shown
            here = child or Node(None, shown.place)
            models = fields.get(str(step), models)
        else:
            models = [m for m in models if m.__name__ == step] or models
        fields = _fields(models)
    return _Fault(
        tuple(path), detail["type"], _message(detail, names, here), shown.shown if shown.shown.file else None
    )


def _fields(models: list[type[BaseModel]]) -> dict[str, list[type[BaseModel]]]:
    """Give the keys that these models take, each with the models inside it."""
    found: dict[str, list[type[BaseModel]]] = {}
    for model in models:
        for name, info in model.model_fields.items():
            found.setdefault(info.alias or name, []).extend(
                inner for _, inner in models_in(info.annotation, "")
            )
        found |= {f"{name}_file": [] for name in secrets_of(model)}
    return found


def _message(detail: Any, names: Collection[str], node: Node) -> str:
    kind, message = detail["type"], str(detail["msg"])
    if kind == "extra_forbidden":
        return "unknown key" + hint(str(detail["loc"][-1]), names)
    if kind == "missing":
        return "must be given"
    if kind in _SHAPE:
        quote = kind == "string_type" and isinstance(node.value, bool | int)
        return f"should be {_SHAPE[kind]}" + (" in quotes" if quote else "")
    return _SUBJECT.sub("", message).partition(" after validation")[0]


def hint(key: str, names: Iterable[str]) -> str:
    """Ask whether the nearest of some names was meant; "" when none is near."""
    close = difflib.get_close_matches(key, names, 1)
    return f" (did you mean {close[0]}?)" if close else ""
