"""YAML as the gateway reads it: strict, with the place of everything, merged over files. Pure: no IO.

- Only `true` and `false` are booleans, only plain decimal digits a number: `no`, `22:22`, `010` and dates
  stay text. A number with a fraction stays text too, for the type of its setting to read.
- Keys are always text; a key given twice is an error with both places; `<<` is none of ours.
- A later file adds to mappings and lists and replaces scalars; `!replace` starts afresh.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from yaml.resolver import BaseResolver

from gateway.errors import ConfigError, Place, Problem

if TYPE_CHECKING:
    from collections.abc import Collection

if TYPE_CHECKING or not yaml.__with_libyaml__:
    from yaml.loader import BaseLoader as _Parser
else:
    from yaml.cyaml import CBaseLoader as _Parser

Path = tuple[str | int, ...]
#: Aliases may make much of little; no configuration is larger or deeper than this.
LARGEST = 400_000
DEEPEST = 50

_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_WORDS = {"true": True, "false": False, "": None, "null": None, "~": None}
_STAR = re.compile(r"\*[^\s,\]}]*")
_QUOTES = (
    "text that holds ': ' or starts with one of : * & ! % @ ` must stand in quotes, and tabs do not indent"
)


@dataclass(slots=True)
class Node:
    """One value: a dict or list of nodes, or a scalar; `key` is the place of its key, if it has one."""

    value: Any
    place: Place
    key: Place | None = None
    replace: bool = False

    @property
    def kind(self) -> str:
        """Name what this is, for messages."""
        if isinstance(self.value, dict):
            return "mapping"
        return "list" if isinstance(self.value, list) else "single value"

    @property
    def shown(self) -> Place:
        """The place that a person looks for: that of the key, else of the value."""
        return self.key or self.place

    def plain(self) -> Any:
        """Give the value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """Give the node under a key or at an index, or None."""
        if isinstance(self.value, dict):
            return self.value.get(str(step))
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]  # type: ignore[no-any-return]
        return None


class _Composer(_Parser):
    """Composes nodes without deciding what a scalar means; a tag is only what the file says."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:  # noqa: ARG002
        return ""

    # The C parser and the Python one ask for the same two of BaseResolver.
    descend_resolver = BaseResolver.descend_resolver
    ascend_resolver = BaseResolver.ascend_resolver


def compose(text: str, file: str) -> Node | None:
    """Read one file; None when it is empty. Raises ConfigError with all problems."""
    try:
        loader = _Composer(text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(_explain(error, text, file)) from None
    if root is None:
        return None
    builder = _Builder(file)
    node = builder.build(root)
    if not isinstance(node.value, dict | None):
        builder.problems.append(
            Problem(f"a {node.kind} here; a file holds sections: `name: ...`", node.place)
        )
    if builder.problems:
        raise ConfigError(builder.problems)
    return node if node.value is not None else None


@dataclass(slots=True)
class _Builder:
    """Builds the tree of one file, each use of an alias afresh."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    size: int = 0

    def build(self, node: Any, depth: int = 0) -> Node:
        place = self._place(node)
        self.size += 1
        if depth > DEEPEST or self.size > LARGEST:
            raise ConfigError(
                Problem("nested too deeply, or too large once its aliases are written out", place)
            )
        if node.tag not in ("", "!replace", "tag:yaml.org,2002:str"):
            self.problems.append(Problem(f"unknown tag {node.tag}: only !replace is known", place))
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node, depth)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.build(item, depth + 1) for item in node.value]
        else:
            value = _scalar(node)
        return Node(value, place, None, node.tag == "!replace")

    def _mapping(self, node: Any, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, content in node.value:
            place = self._place(key)
            problem = _wrong_key(key)
            if not problem and key.value in found:
                problem = f"{key.value}: given twice, first at {found[key.value].key}"
            if problem:
                self.problems.append(Problem(problem, place))
                continue
            found[key.value] = child = self.build(content, depth + 1)
            child.key = place
        return found

    def _place(self, node: Any) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)


def _wrong_key(key: Any) -> str | None:
    if not isinstance(key, yaml.ScalarNode):
        return f"a key must be text, not a {'list' if isinstance(key, yaml.SequenceNode) else 'mapping'}"
    if key.value == "<<" and not key.style:
        return "<< is not supported: write the keys out, or use an alias as a whole value"
    if not key.value and not key.style:
        return 'a key is missing before this colon (an empty key is written "")'
    return None


def _scalar(node: Any) -> str | int | bool | None:
    text: str = node.value
    if node.style or node.tag == "tag:yaml.org,2002:str":
        return text
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if _NUMBER.fullmatch(text) else text


def _explain(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """Say in one line what is wrong with the YAML, with a hint at the usual cause."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    context = getattr(error, "context", None) or ""
    place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, _line_of(error, text))
    line = (text.splitlines() or [""])[mark.line : mark.line + 1] if mark else []
    star = _STAR.search(line[0]) if line else None
    if star and "alias" in f"{context} {reason}":
        hint = f'; text that starts with * must stand in quotes: "{star[0]}"'
    elif "found another document" in reason:
        hint = "; a file holds one document: put what follows --- in a file of its own"
    elif any(sign in reason for sign in ("cannot start any token", "node content", "values are not allowed")):
        hint = f"; {_QUOTES}"
    else:
        hint = f" ({context})" if context else ""
    return Problem(f"no valid YAML: {reason}{hint}", place)


def _line_of(error: yaml.YAMLError, text: str) -> int:
    """Give the line of a character that YAML does not allow, of which only the position is known."""
    position = getattr(error, "position", None)
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else 1


def merge(root: Node, other: Node, unique: Collection[Path], problems: list[Problem], at: Path = ()) -> Node:
    """Merge a later file into an earlier one; gives what holds at this path.

    Two different values for one entry of a mapping listed in `unique` are a problem.
    """
    if other.replace or root.value is None:
        return other
    if other.value is None and isinstance(root.value, dict | list):
        return root
    if root.kind != other.kind:
        problems.append(
            Problem(f"{dotted(at)}: a {other.kind} here, but a {root.kind} at {root.shown}", other.shown)
        )
        return root
    if at[:-1] in unique and root.plain() != other.plain():
        text = f"{dotted(at)}: another value stands at {root.shown}; mark the one that counts with !replace"
        problems.append(Problem(text, other.shown))
        return root
    if at[:-1] in unique:
        return root
    if isinstance(root.value, list):
        root.value.extend(other.value)
        return root
    if not isinstance(root.value, dict):
        return other
    for key, node in other.value.items():
        old = root.value.get(key)
        root.value[key] = merge(old, node, unique, problems, (*at, key)) if old else node
    return root


def spellings(root: Node, unique: Collection[Path]) -> list[Problem]:
    """Find entries of the `unique` mappings that differ only in case, yet have different values."""
    problems: list[Problem] = []
    for path in unique:
        node: Node | None = root
        for step in path:
            node = node.child(step) if node else None
        seen: dict[str, Node] = {}
        for key, entry in node.value.items() if node and isinstance(node.value, dict) else ():
            first = seen.setdefault(key.lower(), entry)
            if first.plain() != entry.plain():
                text = f"{dotted((*path, key))}: another value stands at {first.shown}, in another spelling"
                problems.append(Problem(text, entry.shown))
    return problems


def dotted(path: Path) -> str:
    """Write a path as people do: `virtual_domains.domains.example.org`, `listeners[0].name`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
