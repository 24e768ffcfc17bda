"""qmail's own programs, with qmail's arguments, environment and exit codes.

They start for every mail that is sent or delivered by a program, so they import the standard library's
small modules alone, and of the gateway only what is in this family.
"""

import os
import sys
from importlib import import_module

from gateway.qmail.place import Place

#: program -> the module of it.
PROGRAMS = {
    "bouncesaying": "conditions",
    "condredirect": "redirect",
    "except": "conditions",
    "forward": "redirect",
    "maildir2mbox": "maildir2mbox",
    "maildirmake": "maildirmake",
    "mailq": "sendmail",
    "mailsubj": "dates",
    "newaliases": "sendmail",
    "predate": "dates",
    "preline": "preline",
    "qmail-inject": "inject",
    "qmail-local": "local",
    "qmail-pw2u": "pw2u",
    "qmail-qread": "qread",
    "qmail-qstat": "qread",
    "qmail-queue": "queue",
    "qmail-showctl": "showctl",
    "sendmail": "sendmail",
}
#: Those that load a plugin, and so need the installed packages.
WITH_SITE = ("qmail-local",)
PERMANENT = 100
TEMPORARY = 111


def main(name: str, arguments: list[str], folder: str = "") -> int:
    """Run the program of this name and give its exit code; `folder` is where the executables are."""
    if name not in PROGRAMS:
        known = " ".join(sorted(PROGRAMS))
        wrong = f"there is no program {name}" if name else "name a program"
        sys.stderr.write(f"mailward qmail: {wrong}; there are: {known}\n")
        return PERMANENT
    place = Place(dict(os.environb), os.fsencode(folder))
    program = import_module(f"gateway.qmail.{PROGRAMS[name]}")
    try:
        code: int = program.main(name, [os.fsencode(one) for one in arguments], place)
        sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"{name}: fatal: {error.strerror or error}\n")
        return TEMPORARY
    return code
