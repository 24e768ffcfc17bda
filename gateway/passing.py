"""Hands open files over a socket without ever waiting for who reads it."""

from __future__ import annotations

import array
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def send_files(way: socket.socket, data: bytes, files: Sequence[int]) -> None:
    """Send bytes with open files. Raises OSError; BlockingIOError where there is no room.

    `socket.send_fds` of Python 3.11 takes flags and leaves them out: it would wait.
    """
    given = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    way.sendmsg([data], given, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
