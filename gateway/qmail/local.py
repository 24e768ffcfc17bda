"""qmail-local: delivers one message as an account's `.qmail` files say (qmail spec 6.4).

The work is done by the parts of the bundled plugin dot_qmail, loaded without the plugin itself: that would
import the whole gateway.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gateway.envelope import Account
from gateway.message import Message
from gateway.qmail import PERMANENT, TEMPORARY, queueing
from gateway.qmail.options import OptionError, options

if TYPE_CHECKING:
    from gateway.qmail.place import Place

_ARGUMENTS = 8
_EXITS = {"delivered": 0, "deferred": TEMPORARY, "failed": PERMANENT}
_PACKAGE = "qmail_local_dot_qmail"


def main(name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    try:
        given, words = options(arguments, "nN")
    except OptionError:
        words = []
    if len(words) != _ARGUMENTS or not words[1].startswith(b"/"):
        sys.stderr.write(
            f"{name}: usage: {name} [ -nN ] user homedir local dash ext domain sender defaultdelivery\n"
        )
        return PERMANENT
    os.umask(0o077)
    dry_run = [letter for letter, _ in given][-1:] == ["n"]
    job = _job([one.decode("utf-8", "surrogateescape") for one in words], place, dry_run=dry_run)
    result = _part("execute").perform(job)
    if dry_run:
        for action in result.actions:
            sys.stdout.write(f"{action.kind} {_printable(action.text)}\n")
    elif result.result == "delivered" and result.forwards:
        return _forward(job, result, place)
    sys.stdout.write(f"{_printable(result.text.rstrip())}\n")
    return _EXITS[result.result]


def _job(words: list[str], place: Place, *, dry_run: bool) -> Any:
    user, home, local, dash, ext, host, sender, default = words
    now = time.time()
    return _part("execute").Job(
        account=Account(user, os.geteuid(), os.getegid(), home, dash, ext),
        local=local,
        host=host,
        sender=sender,
        message=Message.parse(b"" if dry_run else b"".join(queueing.read(0))),
        default_delivery=default,
        limits=_part("program").Limits(float("inf"), threading.Event()),
        name=f"{int(now)}.{os.getpid()}",
        birth=now,
        now=now,
        dry_run=dry_run,
        path=os.fsdecode(place.env.get(b"PATH", os.fsencode(os.defpath))),
    )


def _forward(job: Any, result: Any, place: Place) -> int:
    """Send on what the `.qmail` file asks to; all addresses in one message, behind all other lines."""
    line = job.delivered_to.encode("utf-8", "surrogateescape")
    addresses = (result.new_sender, *result.forwards)
    sender, *recipients = [one.encode("utf-8", "surrogateescape") for one in addresses]
    try:
        number = queueing.enqueue(place, iter([line, *job.message.chunks()]), sender, recipients)
    except queueing.Failure as failure:
        sys.stdout.write(f"Unable to forward message: {failure}.\n")
        return failure.code
    sys.stdout.write(f"{_printable(result.text.rstrip())}\nqp {number}\n")
    return 0


def _part(name: str) -> Any:
    """Give a module of the plugin's folder, beside `gateway` in a checkout, inside it in a wheel."""
    if _PACKAGE not in sys.modules:
        gateway = Path(__file__).resolve().parent.parent
        package = ModuleType(_PACKAGE)
        folders = (gateway / "_bundled", gateway.parent / "plugins")
        package.__path__ = [str(one / "dot_qmail") for one in folders]
        sys.modules[_PACKAGE] = package
    return import_module(f"{_PACKAGE}.{name}")


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
