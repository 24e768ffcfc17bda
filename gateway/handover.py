"""Hands open sockets of listeners to another process (SCM_RIGHTS): one message for each listener."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The name under which the submit socket is handed over.
SUBMIT = "submit"
#: Sockets of one listener: two families, or as many as systemd opened for it.
_MOST = 64
_LONGEST = 4096


def give(way: socket.socket, sockets: Mapping[str, list[socket.socket]]) -> None:
    """Send sockets, each list under its name. They stay open here, too."""
    for name, some in sockets.items():
        socket.send_fds(way, [name.encode()], [one.fileno() for one in some])


def take(way: socket.socket, count: int) -> dict[str, list[socket.socket]]:
    """Receive so many lists; they were sent before we were told of them."""
    taken: dict[str, list[socket.socket]] = {}
    for _ in range(count):
        name, descriptors, _, _ = socket.recv_fds(way, _LONGEST, _MOST)
        taken[name.decode()] = [socket.socket(fileno=one) for one in descriptors]
    return taken
