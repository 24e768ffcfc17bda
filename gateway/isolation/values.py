"""Values that cross to a plugin's own process and back: only JSON does, and edits come back as a patch.

A value that JSON does not know is written `{"$": kind, "of": content}`. Of the notes on a session, a
transaction or an entry, a plugin's own cross, as JSON, and those of the milter listener.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import chain, decision, envelope, events, message
from gateway.address import Address
from gateway.envelope import Session, Transaction
from gateway.message import FileBody, Message
from gateway.plugin import Crossed, jsonable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CLASSES: dict[str, type[Any]] = {
    name: kind
    for module in (chain, decision, envelope, events, message)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
}
_PLAIN = (bool, int, float, str)
_MANY: dict[str, type[Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
#: What a plugin may change on what it is given, besides the message and its own notes.
EDITABLE: dict[type[Any], tuple[str, ...]] = {
    Session: ("message_size",),
    Transaction: ("sender", "recipients", "held", "discarded"),
}
#: What a listener notes for all plugins.
_SHARED = "milter"


def pack(value: Any, stem: str = "") -> Any:
    """Write a value for one plugin as JSON. Raises TypeError for what cannot cross."""
    kind = type(value)
    if value is None or kind in _PLAIN:
        return value
    if kind is list:
        return [pack(one, stem) for one in value]
    if kind.__name__ in _MANY and isinstance(value, tuple | set | frozenset):
        return _tagged(kind.__name__, [pack(one, stem) for one in value])
    if isinstance(value, Mapping):
        return _tagged("dict", [[pack(key, stem), pack(one, stem)] for key, one in value.items()])
    for known, write in _WRITERS.items():
        if isinstance(value, known):
            return _tagged(known.__name__, write(value))
    if _CLASSES.get(kind.__name__) is kind:
        return _tagged(kind.__name__, _fields(value, stem))
    raise TypeError(f"{kind.__name__} cannot cross to another process")


def unpack(data: Any) -> Any:
    """Read what `pack` has written. Raises ValueError, KeyError or TypeError for anything else."""
    if isinstance(data, list):
        return [unpack(one) for one in data]
    if not isinstance(data, dict):
        return data
    kind, content = data["$"], data["of"]
    if kind in _MANY:
        return _MANY[kind](unpack(content))
    if kind == "dict":
        return {unpack(key): unpack(one) for key, one in content}
    if kind in _READERS:
        return _READERS[kind](content)
    return _CLASSES[kind](**{name: unpack(one) for name, one in content.items()})


_WRITERS: dict[type[Any], Callable[[Any], Any]] = {
    Address: str,
    bytes: lambda value: base64.b64encode(value).decode(),
    Message: lambda value: [pack(value.header), pack(value.body)],
    Path: str,
    Crossed: lambda value: value.value,
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "Address": Address,
    "bytes": base64.b64decode,
    "Message": lambda content: Message(*unpack(content)),
    "Path": Path,
    "Crossed": Crossed,
}


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    return {"$": kind, "of": content}


def _fields(value: Any, stem: str) -> dict[str, Any]:
    return {
        one.name: pack(_notes(value, one.name, stem), stem)
        if one.name in ("notes", "saved")
        else pack(getattr(value, one.name), stem)
        for one in fields(value)
        if one.init
    }


def _notes(value: Any, name: str, stem: str) -> dict[str, Any]:
    """Give of the notes those that cross; those of an entry are JSON already."""
    notes = getattr(value, name)
    found = {_SHARED: notes[_SHARED]} if _SHARED in notes and stem != _SHARED else {}
    if stem in notes:
        found[stem] = Crossed(jsonable(notes[stem]))
    return found


@dataclass(frozen=True, slots=True)
class Edits:
    """What a call has changed on its arguments: written by the child, applied by the gateway."""

    stem: str
    #: Argument number (and "session" below a transaction) -> field -> packed value.
    patch: dict[str, Any]

    @classmethod
    def between(cls, stem: str, args: Sequence[Any], before: Sequence[Any]) -> Edits:
        """Compare the arguments with what they were, packed, before the call."""
        patch: dict[str, Any] = {}
        for number, (one, old) in enumerate(zip(args, before, strict=True)):
            if isinstance(one, Message):
                new = pack(one)["of"]
                changed = [None if a == b else a for a, b in zip(new, old["of"], strict=True)]
                if any(changed):
                    patch[str(number)] = changed
            for path, holder, was in _holders(str(number), one, old):
                changes = _changes(holder, was, stem)
                if changes:
                    patch[path] = changes
        return cls(stem, patch)

    def apply(self, args: Sequence[Any], *, notes_only: bool, folder: Path) -> None:
        """Change the arguments; a new body on disk may only stand in the plugin's own folder.

        Raises ValueError for what no plugin may change.
        """
        for path, changes in self.patch.items():
            number, _, below = path.partition(".")
            target = args[int(number)]
            if isinstance(target, Message):
                if not notes_only:
                    target.adopt(_edited(target, changes, folder))
                continue
            holder = target.session if below else target
            for name, value in changes.items():
                if name in ("notes", "saved"):
                    getattr(holder, name)[self.stem] = Crossed(value)
                elif name not in EDITABLE[type(holder)]:
                    raise ValueError(f"{type(holder).__name__}.{name} may not be changed")
                elif not notes_only:
                    setattr(holder, name, unpack(value))


def _holders(path: str, one: Any, packed: Any) -> list[tuple[str, Any, Any]]:
    """Give what may be edited within an argument, with its former form."""
    if isinstance(one, Session):
        return [(path, one, packed["of"])]
    if not isinstance(one, Transaction):
        return []
    found: list[tuple[str, Any, Any]] = [(path, one, packed["of"])]
    if one.session is not None and packed["of"]["session"]:
        found.append((f"{path}.session", one.session, packed["of"]["session"]["of"]))
    return found


def _changes(holder: Any, was: dict[str, Any], stem: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in EDITABLE[type(holder)]:
        new = pack(getattr(holder, name), stem)
        if new != was[name]:
            changes[name] = new
    for name in ("notes", "saved"):
        if stem in getattr(holder, name, {}):
            changes[name] = jsonable(getattr(holder, name)[stem])
    return changes


def _edited(message: Message, changed: Sequence[Any], folder: Path) -> Message:
    header, body = (None if one is None else unpack(one) for one in changed)
    if isinstance(body, FileBody) and not body.path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"a body may not stand at {body.path}")
    return Message(message.header if header is None else header, message.body if body is None else body)
