"""Hands open sockets of listeners to another process (SCM_RIGHTS): one message for each listener."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The names under which the submit socket, and the one to the agent, are handed over.
SUBMIT, AGENT = "submit", "agent"
#: Sockets of one listener: two families, or as many as systemd opened for it.
_MOST = 64
_LONGEST = 4096


def give(way: socket.socket, name: str, sockets: Sequence[socket.socket]) -> None:
    """Send sockets under a name; they stay open here, too. The other side must take them before the next."""
    socket.send_fds(way, [name.encode()], [one.fileno() for one in sockets])


def take(way: socket.socket) -> tuple[str, list[socket.socket]]:
    """Receive what was given before we were told of it."""
    name, descriptors, _, _ = socket.recv_fds(way, _LONGEST, _MOST, socket.MSG_CMSG_CLOEXEC)
    return name.decode(), [socket.socket(fileno=one) for one in descriptors]
