"""qmail-qread and qmail-qstat: what is in the queue (qmail spec 8.5), by the gateway's control socket."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from gateway.qmail import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.qmail.place import Place

_PAGE = 1000


def main(name: str, _arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    try:
        if name == "qmail-qstat":
            _stat(place.state)
        else:
            _read(place.state)
    except OSError as error:
        sys.stderr.write(f"{name}: fatal: the gateway cannot be asked: {error.strerror or error}\n")
        return TEMPORARY
    return 0


def _read(state: bytes) -> None:
    for entry in _entries(state):
        date = time.strftime("%H:%M:%S GMT", time.gmtime(entry["birth"]))
        day = time.strftime("%d %b %Y", time.gmtime(entry["birth"]))
        sys.stdout.write(f"{day.lstrip('0')} {date}  #{entry['id']}  {entry['size']}  <{entry['sender']}> \n")
        for one in entry["recipients"]:
            channel = "remote" if one["route"].startswith("remote") else "local"
            done = "  done" if one["state"] in ("delivered", "failed", "expired") else ""
            sys.stdout.write(f"{done}\t{channel}\t{one['address']}\n")


def _stat(state: bytes) -> None:
    entries = list(_entries(state))
    # What has no route yet was not looked at: qmail's "not yet preprocessed".
    fresh = sum(all(not one["route"] for one in entry["recipients"]) for entry in entries)
    sys.stdout.write(f"messages in queue: {len(entries)}\n")
    sys.stdout.write(f"messages in queue but not yet preprocessed: {fresh}\n")


def _entries(state: bytes) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        page = list(_call(state, "queue.list", limit=_PAGE, after=after))
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1]["id"]


def _call(state: bytes, name: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Ask the running gateway; `control.py` describes the other end. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.connect(os.path.join(state, b"control"))
        link.sendall(json.dumps({"call": name, **arguments}).encode() + b"\n")
        with link.makefile("rb") as answers:
            for line in answers:
                answer = json.loads(line)
                if "error" in answer:
                    raise OSError(answer["error"])
                if "done" in answer:
                    return
                yield answer["row"]
    raise OSError("it ended before it had answered")
