"""Reads an installation of qmail and says in Mailward's settings what it said (qmail spec section 1.2)."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway import controls
from gateway.settings.options import as_yaml
from gateway.settings.qmail_control import DOUBLE_BOUNCE, INJECT, TABLE, settings_of

if TYPE_CHECKING:
    from pathlib import Path

#: Files of the new conf.d, and the sections that each has.
FILES = {
    "10-gateway.yaml": ("gateway", "listeners", "limits", "queue"),
    "20-relay.yaml": ("relay_control", "rcpthosts", "badmailfrom"),
    "30-accounts.yaml": ("locals", "percenthack", "virtual_domains", "accounts", "dot_qmail"),
    "40-remote.yaml": ("remote", "bounces"),
}
#: Control files that start scripts read, or that only have a meaning beside another one.
_KNOWN = {"defaultdelivery", "concurrencyincoming", "morercpthosts", *DOUBLE_BOUNCE, *INJECT, *TABLE}
_RULES = ("etc/tcp.smtp", "tcp.smtp", "etc/tcp.smtp.cdb", "control/tcp.smtp")
_START = re.compile(r"qmail-start\s+[\"']?(\.?/[^\s\"']+)")
_VARIABLE = re.compile(r",([A-Za-z_]\w*)=")
_VDELIVERMAIL = "vdelivermail"


@dataclass(slots=True)
class Site:
    """What an installation becomes: settings by dotted key, each with a comment; copies; what is left."""

    old: Path
    new: Path
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    #: What has no counterpart, or works differently from now on.
    report: list[str] = field(default_factory=list)

    def give(self, key: str, value: Any, why: str) -> None:
        """Set a value, and say why."""
        self.settings[key] = value, why

    def copy(self, path: Path, name: str) -> str:
        """Take a file over as it is; gives its new place, relative to the folder of conf.d."""
        target = self.new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return name

    def yaml(self, sections: tuple[str, ...]) -> str:
        """Write some sections, each value below its comment."""
        lines: list[str] = []
        for section in sections:
            lines += _lines(section, self.settings)
        return "\n".join(lines).lstrip("\n") + "\n"


def read_installation(old: Path, new: Path, rules: Path | None) -> Site:
    """Read what stands in an installation, and copy its lists. Raises OSError."""
    site = Site(old, new)
    state = "/var/lib/mailward" if new.resolve().is_relative_to("/etc") else "var"
    site.give("gateway.state", state, "the queue, the journal and all other state")
    site.give(
        "listeners",
        [{"name": "mx", "protocol": "smtp", "address": "*:2525"}],
        'beside qmail, which still has port 25; "*:25" when its time has come',
    )
    _controls(site)
    _as_qmail_did(site)
    _relay(site, rules)
    _accounts(site)
    _delivery(site)
    return site


def _controls(site: Site) -> None:
    folder = site.old / "control"
    for key, value, place in settings_of(folder):
        given = controls.read_line(folder / "me") if key == "rcpthosts.localiphost" else None
        if place.file == str(folder):
            site.give(key, value, "there is no control/databytes, so a message of any size is taken")
        elif given is None or given != value:
            path = folder / place.file.rpartition("/")[2]
            is_list = path.name in TABLE and TABLE[path.name].kind == "list"
            site.give(
                key, site.copy(path, f"control/{path.name}") if is_list else value, f"control/{path.name}"
            )
        else:
            site.give(key, value, "control/me, as there is no control/localiphost")
    for name in INJECT:
        if (folder / name).is_file():
            site.copy(folder / name, f"control/{name}")
            site.report.append(f"control/{name}: qmail-inject and sendmail read it themselves; it was copied")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in _KNOWN and not path.name.startswith("."):
            site.report.append(f"control/{path.name}: has no counterpart")
    if (folder / "morercpthosts").is_file() and not (folder / "morercpthosts.cdb").is_file():
        site.report.append("control/morercpthosts: was never compiled, so its domains did not count")
    if not (folder / "rcpthosts").is_file():
        text = "qmail took mail for every domain, from everybody; now none is taken"
        site.report.append(f"control/rcpthosts: there is none. {text}, until rcpthosts.domains names yours")


def _as_qmail_did(site: Site) -> None:
    """Set what qmail did without being told."""
    site.give("limits.helo_required", False, "qmail-smtpd never asked for HELO")
    site.give("limits.syntax", "liberal", "qmail-smtpd took what some old programs and devices say")
    incoming = controls.read_integer(site.old / "control" / "concurrencyincoming", 0)
    if incoming:
        site.give("limits.sessions", incoming, "control/concurrencyincoming, the -c of tcpserver")
    for channel in ("local", "remote"):
        key = f"queue.concurrency.{channel}"
        if site.settings.get(key, (1, ""))[0] == 0:
            del site.settings[key]
            site.report.append(
                f"control/concurrency{channel}: 0 held all mail; use `mailward queue hold` instead"
            )


def _relay(site: Site, rules: Path | None) -> None:
    found = rules or next((site.old / name for name in _RULES if (site.old / name).is_file()), None)
    if found is None:
        site.report.append("tcp.smtp: not found, so no client may relay; name the file with --rules")
        return
    site.give("relay_control.rules", site.copy(found, found.name), f"{found}, the rules of tcpserver")
    text = found.read_text("utf-8", "surrogateescape")
    for name in sorted(set(_VARIABLE.findall(text)) - {"RELAYCLIENT", "DATABYTES"}):
        site.report.append(f"{found.name}: the variable {name} has no effect")


def _accounts(site: Site) -> None:
    users, alias = site.old / "users", site.old / "alias"
    assign = next((path for path in (users / "cdb", users / "assign") if path.is_file()), None)
    if assign and assign.name == "cdb" and (users / "assign").is_file():
        assign = users / "assign"
        why = "users/assign; it is asked before the users of this machine, and needs no qmail-newu"
    else:
        why = f"users/{assign.name}" if assign else ""
    if (users / "assign").is_file() and not (users / "cdb").is_file():
        site.report.append("users/assign: was never compiled by qmail-newu, so it did not count; it does now")
    if assign:
        site.give("accounts.assign", site.copy(assign, f"users/{assign.name}"), why)
        _vpopmail(site, assign)
    site.give("accounts.system", True, "the users of this machine, as qmail-getpw finds them")
    if alias.is_dir():
        site.give("accounts.alias", {"home": str(alias.absolute())}, "the user alias: its files stay")
    else:
        site.report.append("alias: there is no such folder; postmaster's mail goes to the state folder")


def _vpopmail(site: Site, assign: Path) -> None:
    """Say which domains of vpopmail work on, by the program line of their `.qmail-default`."""
    text = assign.read_text("utf-8", "surrogateescape") if assign.name == "assign" else ""
    for _, line in controls.parse_list(text):
        fields = line.split(":")
        default = site.old / fields[4] / ".qmail-default" if len(fields) > 4 else None  # noqa: PLR2004 - home
        if default and default.is_file() and _VDELIVERMAIL in default.read_text("utf-8", "surrogateescape"):
            site.report.append(f"{default}: runs {_VDELIVERMAIL} of vpopmail, which must stay installed")


def _delivery(site: Site) -> None:
    given, start = site.old / "control" / "defaultdelivery", site.old / "rc"
    if given.is_file():
        text = given.read_text("utf-8", "surrogateescape").rstrip("\n")
        site.give("dot_qmail.default_delivery", text, "control/defaultdelivery")
        return
    match = _START.search(start.read_text("utf-8", "surrogateescape")) if start.is_file() else None
    if match:
        site.give("dot_qmail.default_delivery", match[1], f"the argument of qmail-start in {start}")
    else:
        site.give(
            "dot_qmail.default_delivery", "./Mailbox", "qmail's usual one: no start script says another"
        )


def _lines(section: str, settings: dict[str, tuple[Any, str]]) -> list[str]:
    """Write the settings of one section."""
    if section in settings:
        value, why = settings[section]
        return ["", f"# {why}", f"{section}: {as_yaml(value)}"]
    own = {key: given for key, given in settings.items() if key.startswith(f"{section}.")}
    lines: list[str] = []
    shown: list[str] = []
    for key, (value, why) in own.items():
        *groups, name = key.split(".")[1:]
        if groups and groups != shown:
            lines.append(f"  {groups[0]}:")
        shown = groups
        indent = "  " * (1 + len(groups))
        lines += [f"{indent}# {why}", f"{indent}{name}: {_quoted(value)}"]
    return ["", f"{section}:", *lines] if lines else []


def _quoted(value: Any) -> str:
    """Write a value so that YAML takes no text for anything else, and no line end is lost."""
    if not isinstance(value, str):
        return as_yaml(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
