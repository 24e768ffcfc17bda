"""qmail-showctl: explains the control files that qmail's programs read here (qmail spec 8.5)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.qmail import TEMPORARY
from gateway.qmail.place import CONTROL

if TYPE_CHECKING:
    from gateway.qmail.place import Place

#: file -> what it says; the order and the files are those of qmail-showctl.
_FILES = {
    "badmailfrom": "Senders that are refused: one address or @domain a line.",
    "bouncefrom": "The local part of bounces' From.",
    "bouncehost": "The host of bounces' From.",
    "concurrencylocal": "Local deliveries at one time.",
    "concurrencyremote": "Remote deliveries at one time.",
    "databytes": "The largest message in bytes; 0 for any.",
    "defaultdomain": "Appended to host names without a dot.",
    "defaulthost": "Appended to addresses without a host.",
    "doublebouncehost": "The host of the address for double bounces.",
    "doublebounceto": "The local part of the address for double bounces.",
    "envnoathost": "Appended to envelope recipients without a host.",
    "helohost": "The name in HELO.",
    "idhost": "The host of Message-IDs.",
    "localiphost": "Put in place of our own address in brackets.",
    "locals": "Domains that are delivered here.",
    "me": "The name of this host.",
    "morercpthosts": "More domains that are taken.",
    "percenthack": "Domains for which user%host is rewritten.",
    "plusdomain": "Appended to host names that end in a plus sign.",
    "queuelifetime": "Seconds that a message stays in the queue.",
    "rcpthosts": "Domains that are taken from everybody.",
    "smtpgreeting": "The first line that a client sees.",
    "smtproutes": "Where mail goes, whatever DNS says.",
    "timeoutconnect": "Seconds to wait for a connection.",
    "timeoutremote": "Seconds to wait for each answer of a host.",
    "timeoutsmtpd": "Seconds to wait for each command of a client.",
    "virtualdomains": "Domains and addresses that are somebody's.",
}
#: Made from other files.
_COMPILED = {"morercpthosts.cdb": "morercpthosts"}


def main(name: str, _arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    folder = os.path.join(place.home, b"control")
    if not os.path.isdir(folder):
        folder = os.path.join(place.state, CONTROL)
    out = sys.stdout
    out.write(f"state folder of the gateway: {os.fsdecode(place.state)}\n")
    out.write(f"control files: {os.fsdecode(folder)}\n")
    try:
        present = sorted(os.fsdecode(one) for one in os.listdir(folder) if not one.startswith(b"."))
        for file, words in _FILES.items():
            out.write(f"\n{file}: {words}\n")
            out.write(_content(os.path.join(folder, file.encode())) if file in present else "(Default.)\n")
        for one in present:
            out.write(_remark(folder, one))
    except OSError as error:
        sys.stderr.write(f"{name}: fatal: unable to read the control files: {error.strerror}\n")
        return TEMPORARY
    return 0


def _content(path: bytes) -> str:
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        lines = [line.rstrip(" \t\n") for line in file]
    return "".join(f"  {line}\n" for line in lines if line and not line.startswith("#")) or "(Empty.)\n"


def _remark(folder: bytes, name: str) -> str:
    """Say what is wrong with a file that is not one of the texts."""
    if name in _FILES:
        return ""
    if name not in _COMPILED:
        return f"\n{name}: I have no idea what this file does.\n"
    source = os.path.join(folder, _COMPILED[name].encode())
    made = os.stat(os.path.join(folder, name.encode())).st_mtime
    if not os.path.exists(source) or os.stat(source).st_mtime > made:
        return f"\n{name}: Oops! It is older than {_COMPILED[name]}; run qmail-newmrh.\n"
    return f"\n{name}: made from {_COMPILED[name]}.\n"
