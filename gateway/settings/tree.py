"""Tree: all of `conf.d/*.yaml` as one, and models validated against it with errors by `file:line`."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.errors import ConfigError, Place, Problem
from gateway.settings.faults import hint, problems_of
from gateway.settings.options import masked
from gateway.settings.qmail_control import beneath
from gateway.settings.yamltree import Node, compose, dotted, merge, spellings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

M = TypeVar("M", bound=BaseModel)
Steps = tuple[str | int, ...]

#: Mappings of which one entry may have only one value over all files (DESIGN: domain, account, route).
UNIQUE = frozenset({("virtual_domains", "domains"), ("accounts", "virtual"), ("remote", "routes")})


class Tree:
    """The configuration before anything gives it a meaning: sections, values, and where each stands."""

    def __init__(self, root: Node, base: Path, texts: Mapping[str, str] | None = None) -> None:
        self._root = root
        #: Relative paths start here.
        self.base = base
        #: What the files held, by the names that messages give them: `parse` makes the same tree of it.
        self.texts = texts or {}

    @classmethod
    def load(cls, folder: Path, base: Path | None = None) -> Tree:
        """Read every `*.yaml` of a folder in lexical order; `base` is the folder that holds it.

        Raises ConfigError with all problems of all files.
        """
        folder = folder.absolute()
        texts: dict[str, str] = {}
        problems: list[Problem] = []
        for path in _files(folder):
            shown = f"{folder.name}/{path.name}"
            try:
                texts[shown] = path.read_text("utf-8-sig")
            except OSError as error:
                problems.append(Problem(f"cannot be read: {error.strerror}", Place(shown)))
            except UnicodeDecodeError as error:
                line = error.object.count(b"\n", 0, error.start) + 1
                problems.append(Problem("is not UTF-8", Place(shown, line)))
        return cls._parse(texts, base or folder.parent, problems)

    @classmethod
    def parse(cls, texts: Mapping[str, str], base: Path = Path()) -> Tree:
        """Read the texts of files, named as messages shall name them, in the order given."""
        return cls._parse(texts, base.absolute(), [])

    @classmethod
    def _parse(cls, texts: Mapping[str, str], base: Path, problems: list[Problem]) -> Tree:
        root = Node({}, Place(""))
        for file, text in texts.items():
            try:
                node = compose(text, file)
            except ConfigError as error:
                problems.extend(error.problems)
                continue
            root = merge(root, node, UNIQUE, problems) if node else root
        problems += spellings(root, UNIQUE)
        if problems:
            raise ConfigError(problems)
        beneath(root, base)
        return cls(root, base, texts)

    def sections(self) -> list[str]:
        """Name the sections that are present, empty ones too."""
        return list(self._root.value)

    def only(self, name: str) -> Tree:
        """Give a tree that knows this section alone."""
        node = self._root.child(name)
        return Tree(Node({name: node} if node else {}, self._root.place), self.base, {})

    def plain(self, name: str) -> Any:
        """Give one section as plain dicts, lists and scalars; None when it is absent or empty."""
        node = self._root.child(name)
        return node.plain() if node else None

    def section(self, name: str, model: type[M], context: Mapping[str, Any] | None = None) -> M:
        """Validate one section; one that is absent or empty has the defaults. Raises ConfigError."""
        node = self._root.child(name)
        data = _given(model, node.plain() if node else None)
        return self._validate(model, data, (name,), context)

    def whole(self, model: type[M]) -> M:
        """Validate all sections that a model has as its fields. Raises ConfigError."""
        present = {
            name: node.plain() for name, node in self._root.value.items() if name in model.model_fields
        }
        return self._validate(model, _given(model, present), (), None)

    def text(self, *path: str | int) -> str:
        """Give a single value as it stands, before it is validated; "" when there is none."""
        node = self._exact(path)
        if node is None or node.value is None or isinstance(node.value, dict | list):
            return ""
        return str(node.value).lower() if isinstance(node.value, bool) else str(node.value)

    def place(self, *path: str | int) -> Place | None:
        """Say where a path stands, or the longest part of it that does."""
        found = _longest(self._root, path)
        return None if found is self._root else found.shown

    def origin(self, *path: str | int) -> Place | None:
        """Say where a path stands; None when no file gives it, so that its default counts."""
        node = self._exact(path)
        return node.shown if node else None

    def digest(self, name: str) -> str:
        """Sum a section up, to tell whether it has changed; "" when it is absent."""
        node = self._root.child(name)
        return hashlib.sha256(json.dumps(node.plain()).encode()).hexdigest() if node else ""

    def unknown_sections(self, known: Collection[str]) -> list[Problem]:
        """List a problem for each section that nobody reads."""
        return [
            Problem(f"{name}: unknown section{hint(name, known) or '; no plugin has this name'}", node.shown)
            for name, node in self._root.value.items()
            if name not in known
        ]

    def effective(self, values: BaseModel, *path: str | int) -> Iterator[tuple[str, Any, Place | str]]:
        """List (dotted key, value as written, its place or "default") of a validated model, secrets masked.

        `path` is where the model stands: the name of its section, nothing for the core settings.
        """
        return self._leaves(
            values, values.model_dump(mode="json", by_alias=True, fallback=str), path, "default"
        )

    def _leaves(
        self, value: Any, written: Any, path: Steps, place: Place | str
    ) -> Iterator[tuple[str, Any, Place | str]]:
        if isinstance(value, BaseModel) and isinstance(written, dict):
            for name, info in type(value).model_fields.items():
                key = info.alias or name
                at = self.origin(*path, key) or self.origin(*path, f"{key}_file") or "default"
                yield from self._leaves(getattr(value, name), masked(key, written[key]), (*path, key), at)
        elif isinstance(written, dict | list) and written and len(value) == len(written):
            keys = written if isinstance(written, dict) else range(len(written))
            items = value.values() if isinstance(value, dict) else value
            for key, item in zip(keys, items, strict=True):
                at = self.origin(*path, key) or place
                yield from self._leaves(item, written[key], (*path, key), at)
        else:
            yield dotted(path), written, place

    def _exact(self, path: Steps) -> Node | None:
        node: Node | None = self._root
        for step in path:
            node = node.child(step) if node else None
        return node

    def _validate(self, model: type[M], data: Any, at: Steps, context: Mapping[str, Any] | None) -> M:
        try:
            found = model.model_validate(data, context={"base": self.base, **(context or {})})
        except ValidationError as error:
            node = self._exact(at) or Node({}, Place(""))
            raise ConfigError(problems_of(error, model, node, at)) from None
        loose = [
            Problem(f"{dotted(path)}: should be true or false", self.place(*path))
            for path in _loose_booleans(found, data, at)
        ]
        if loose:
            raise ConfigError(loose)
        return found


def _files(folder: Path) -> list[Path]:
    """List the files that count, in lexical order. Raises ConfigError when there are none."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        remedy = "name the folder of the settings with --conf, or make one with `mailward init`"
        raise ConfigError(f"{folder}: {error.strerror}; {remedy}") from None
    counted = [name for name in names if not name.startswith(".") and ".dpkg-" not in name]
    if stray := [Place(f"{folder.name}/{name}") for name in counted if name.endswith(".yml")]:
        raise ConfigError([Problem("only *.yaml is read: rename it", place) for place in stray])
    if not any(name.endswith(".yaml") for name in counted):
        raise ConfigError(f"{folder}: no *.yaml file in it; `mailward init` writes a first one")
    return [folder / name for name in counted if name.endswith(".yaml")]


def _given(model: Any, data: Any) -> Any:
    """Leave out what is written empty (`domains:` and nothing behind it): the default counts.

    A block that is made by `default_factory=ITS CLASS` is validated too, so that its paths have a base.
    """
    if data is None:
        data = {}
    if not isinstance(data, dict) or not (inspect.isclass(model) and issubclass(model, BaseModel)):
        return data
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    given: dict[str, Any] = {
        key: {} for key, info in fields.items() if info.default_factory is info.annotation
    }
    given |= {key: value for key, value in data.items() if value is not None or key not in fields}
    return {
        key: _given(fields[key].annotation, value) if key in fields else value for key, value in given.items()
    }


def _loose_booleans(value: Any, data: Any, path: Steps) -> Iterator[Steps]:
    """Find what pydantic took for a boolean though it is none: `no`, `on`, 1."""
    if isinstance(value, bool):
        if not isinstance(data, bool):
            yield path
    elif isinstance(value, BaseModel) and isinstance(data, dict):
        for name, info in type(value).model_fields.items():
            key = info.alias or name
            if key in data:
                yield from _loose_booleans(getattr(value, name), data[key], (*path, key))
    elif isinstance(value, dict) and isinstance(data, dict):
        for key in value.keys() & data.keys():
            yield from _loose_booleans(value[key], data[key], (*path, key))
    elif isinstance(value, list | tuple) and isinstance(data, list) and len(value) == len(data):
        for i, (item, given) in enumerate(zip(value, data, strict=True)):
            yield from _loose_booleans(item, given, (*path, i))


def _longest(root: Node, path: Steps) -> Node:
    """Give the node of the longest part of a path that stands in the tree."""
    node = root
    for step in path:
        child = node.child(step)
        if child is None:
            break
        node = child
    return node
