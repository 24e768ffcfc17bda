"""Tells systemd how far we are (sd_notify(3)). Without $NOTIFY_SOCKET nobody is told."""

from __future__ import annotations

import contextlib
import os
import socket
import time

#: All that is ever said: a worker that was taken over may ask the agent for these words, and no others.
WORDS = ("READY", "RELOADING", "STOPPING")


def notify(word: str) -> None:
    """Say one of WORDS. Mail does not depend on whether it is heard."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A unit of the type notify-reload wants to know when a reload began.
    since = f"\nMONOTONIC_USEC={time.monotonic_ns() // 1000}" if word == "RELOADING" else ""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way,
    ):
        way.sendto(f"{word}=1{since}".encode(), address.replace("@", "\0", 1))
