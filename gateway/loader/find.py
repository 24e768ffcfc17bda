"""Finds plugin files: bundled, in drop-in folders, installed. Nothing is run here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway.errors import Place, PluginError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Origin = Literal["bundled", "site", "installed"]

_STEM = re.compile(r"[a-z][a-z0-9_]*")
_IGNORED = re.compile(r"[_.].*|test_.*|.*~|.*\.dpkg-.*")


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin that could run: where it is, and what it would replace."""

    stem: str
    origin: Origin
    path: Path
    digest: str
    #: For an installed plugin: the distribution, and the entry point's value.
    distribution: str = ""
    value: str = ""
    replaces: Path | None = None


def bundled_folder() -> Path:
    """Find the bundled plugins: in the wheel, or beside `gateway/` in a checkout.

    Never `site-packages/plugins`, which may be somebody else's. Raises PluginError.
    """
    here = Path(__file__).parent.parent
    if (inside := here / "_bundled").is_dir():
        return inside
    if (here.parent / "pyproject.toml").is_file() and (here.parent / "plugins").is_dir():
        return here.parent / "plugins"
    raise PluginError("the bundled plugins are missing: install mailward again")


def discover(
    folders: Sequence[Path], sections: frozenset[str] | set[str], distributions: Mapping[str, str]
) -> dict[str, Found]:
    """Find every plugin by stem; a site folder (the last one wins) beats bundled, bundled beats installed.

    `sections` are the sections that the configuration has; an installed plugin counts only with one.
    `distributions` says which distribution may take a stem. Raises PluginError.
    """
    found = _installed(sections, distributions)
    for stem, path in _files(bundled_folder()):
        if stem not in found or not distributions.get(stem):
            found[stem] = Found(stem, "bundled", path, _digest(path))
    for folder in folders:
        _refuse_unsafe(folder)
        for stem, path in _files(folder):
            for one in _parts(path):
                _refuse_unsafe(one)
            before = found.get(stem)
            found[stem] = Found(stem, "site", path, _digest(path), replaces=before.path if before else None)
    return dict(sorted(found.items()))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise PluginError(f"plugins.folders: cannot read {folder}: {error.strerror}") from error
    for path in entries:
        if _IGNORED.fullmatch(path.name):
            continue
        file = path / "__init__.py" if path.is_dir() else path
        if file.suffix != ".py" or not file.is_file():
            continue
        if not _STEM.fullmatch(path.stem):
            raise PluginError(
                Problem("a plugin's name is [a-z][a-z0-9_]*: rename the file", Place(str(path)))
            )
        yield path.stem, file


def _installed(sections: frozenset[str] | set[str], distributions: Mapping[str, str]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for point in entry_points(group="mailward.plugins"):
        distribution = point.dist.name if point.dist else ""
        if point.name not in sections or (distributions.get(point.name) or distribution) != distribution:
            continue
        if point.name in found:
            both = f"{found[point.name].distribution} and {distribution}"
            raise PluginError(f"{point.name}: installed by {both}: write `distribution:` into its section")
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            raise PluginError(f"{point.name}: {distribution} names {point.module}, which is not there")
        path = Path(spec.origin)
        found[point.name] = Found(point.name, "installed", path, _digest(path), distribution, point.value)
    return found


def _refuse_unsafe(path: Path) -> None:
    """Refuse a file that others than root and we may write, since it runs as us. Raises PluginError."""
    try:
        status = path.stat()
    except OSError as error:
        raise PluginError(f"plugins.folders: cannot read {path}: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()):
        raise PluginError(Problem(f"owned by uid {status.st_uid}: chown it to root", Place(str(path))))
    # In a sticky folder others may add files of their own, which are refused, but not touch ours.
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise PluginError(Problem("others may write it: run chmod go-w", Place(str(path))))


def _parts(file: Path) -> list[Path]:
    """Give all that runs with a plugin's file: it alone, or its folder with what lies in it."""
    return [file.parent, *sorted(file.parent.rglob("*"))] if file.name == "__init__.py" else [file]


def _digest(file: Path) -> str:
    """Digest a plugin's file, or all files of its folder."""
    digest = hashlib.blake2b(digest_size=16)
    for one in (part for part in _parts(file) if part.suffix == ".py"):
        digest.update(str(one).encode() + b"\0" + one.read_bytes())
    return digest.hexdigest()
