"""A directory of qmail's control files as settings (qmail spec 1.2): a layer below conf.d.

`qmail_control: /var/qmail/control` stands for what TABLE says of each file in it. Lists are left in their
files, which plugins read anew when they change; what is one line or one number is read at start and at a
reload. What conf.d says itself wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gateway import controls
from gateway.errors import ConfigError, Place, Problem
from gateway.settings.yamltree import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Control(NamedTuple):
    """What one control file is here: how it is read, and the settings that it gives."""

    kind: Literal["list", "line", "number", "seconds"]
    settings: tuple[str, ...]
    #: qmail takes a smaller number for this one.
    least: int = 0


TABLE = {
    # `localiphost` below replaces it, where that file exists.
    "me": Control("line", ("gateway.hostname", "rcpthosts.localiphost")),
    "smtpgreeting": Control("line", ("gateway.greeting",)),
    "databytes": Control("number", ("limits.message_size",)),
    "timeoutsmtpd": Control("seconds", ("limits.idle",), 1),
    "concurrencylocal": Control("number", ("queue.concurrency.local",)),
    "concurrencyremote": Control("number", ("queue.concurrency.remote",)),
    "queuelifetime": Control("seconds", ("queue.lifetime",), 1),
    "badmailfrom": Control("list", ("badmailfrom.file",)),
    "bouncefrom": Control("line", ("bounces.sender",)),
    "bouncehost": Control("line", ("bounces.host",)),
    "locals": Control("list", ("locals.file",)),
    "envnoathost": Control("line", ("percenthack.envnoathost",)),
    "percenthack": Control("list", ("percenthack.file",)),
    "localiphost": Control("line", ("rcpthosts.localiphost",)),
    "morercpthosts.cdb": Control("list", ("rcpthosts.cdb",)),
    "rcpthosts": Control("list", ("rcpthosts.file",)),
    "helohost": Control("line", ("remote.helo",)),
    "smtproutes": Control("list", ("remote.file",)),
    "timeoutconnect": Control("seconds", ("remote.timeout_connect",), 1),
    "timeoutremote": Control("seconds", ("remote.timeout", "remote.timeout_final"), 1),
    "virtualdomains": Control("list", ("virtual_domains.file",)),
}
#: The two files that make one setting, `bounces.double_bounce_to`.
DOUBLE_BOUNCE = ("doublebounceto", "doublebouncehost")
#: Files that `mailward qmail qmail-inject` reads itself.
INJECT = ("defaultdomain", "defaulthost", "idhost", "plusdomain")


def beneath(root: Node, base: Path) -> None:
    """Put what `qmail_control` stands for below what conf.d says. Raises ConfigError."""
    node = root.child("qmail_control")
    if node is None or not isinstance(node.value, str):
        return  # absent, or for the validation to refuse
    folder = base / node.value
    if not folder.is_dir():
        raise ConfigError(Problem(f"qmail_control: {folder} is no folder of control files", node.shown))
    try:
        given = {key: Node(value, place, place) for key, value, place in settings_of(folder)}
    except OSError as error:
        text = f"qmail_control: {error.filename}: {error.strerror}"
        raise ConfigError(Problem(text, node.shown)) from error
    for key, value in given.items():
        _give(root, key.split("."), value)


def settings_of(folder: Path) -> Iterator[tuple[str, Any, Place]]:
    """Give (dotted key, value, place) for each control file of a folder. Raises OSError."""
    # Without `databytes` qmail takes a message of any size.
    yield "limits.message_size", 0, Place(str(folder))
    for name, control in TABLE.items():
        path = folder / name
        value = _value(path, control)
        if value is not None:
            place = Place(str(path), 0 if control.kind == "list" else 1)
            yield from ((key, value, place) for key in control.settings)
    yield from _double_bounce(folder)


def _value(path: Path, control: Control) -> Any:
    """Read one file; None when it is absent, or holds no number where qmail wants one."""
    if control.kind == "list":
        return str(path.absolute()) if path.exists() else None
    if control.kind == "line":
        return controls.read_line(path)
    number = controls.read_integer(path, -1)
    if number < 0:
        return None
    return max(number, control.least) if control.kind == "number" else f"{max(number, control.least)}s"


def _double_bounce(folder: Path) -> Iterator[tuple[str, str, Place]]:
    local, host = (controls.read_line(folder / name) for name in DOUBLE_BOUNCE)
    if local is None and host is None:
        return
    local = "postmaster" if local is None else local
    host = (controls.read_line(folder / "me") or "") if host is None else host
    yield "bounces.double_bounce_to", f"{local}@{host}", Place(str(folder / DOUBLE_BOUNCE[0]), 1)


def _give(node: Node, keys: list[str], given: Node) -> None:
    """Set a value where conf.d has none."""
    if node.replace or not isinstance(node.value, dict):
        return
    if len(keys) == 1:
        old = node.value.get(keys[0])
        if old is None or old.value is None:
            node.value[keys[0]] = given
        return
    child = node.value.get(keys[0])
    if child is None or child.value is None:
        child = node.value[keys[0]] = Node({}, given.place, given.place)
    _give(child, keys[1:], given)
