"""The signals by which people and systemd end a gateway or reload it, held back while it starts.

Otherwise one that comes before there are handlers would end a process hard, and leave others behind.
"""

from __future__ import annotations

import signal

#: They reach the process that was started, or its whole group.
OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold() -> None:
    """Have them wait; what is forked meanwhile has them wait, too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, OURS)


def hear() -> None:
    """Let them come, now that they have handlers; one that waits comes at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
