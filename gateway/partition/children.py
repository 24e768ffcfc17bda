"""The children of accounts: started when one is asked, let go when none is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.errors import AgentError
from gateway.partition.forking import start_child
from gateway.passing import send_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.accounts.book import Listed

#: A child that has been asked nothing for so many seconds is let go.
IDLE = 60.0
#: Accounts that have a child at one time; the one that was asked longest ago makes room.
_MOST = 200


@dataclass(slots=True)
class _Child:
    """The process of one account."""

    pid: int
    way: socket.socket
    asked: float = field(default_factory=time.monotonic)


class Children:
    """One for each account that was asked of late."""

    def __init__(self) -> None:
        self._children: dict[Listed, _Child] = {}

    def hand_on(self, account: Listed, data: bytes, files: Sequence[int], plan: Mapping[str, Any]) -> None:
        """Hand a request on to the child of an account. Raises AgentError."""
        child = self._children.get(account) or self._start(account, plan)
        child.asked = time.monotonic()
        try:
            send_files(child.way, data, files)
        except BlockingIOError:
            raise AgentError(f"{account.user}: too much waits for this account") from None
        except OSError:
            self._let_go(account)
            raise AgentError(f"{account.user}: the child of this account has ended") from None

    def _start(self, account: Listed, plan: Mapping[str, Any]) -> _Child:
        """Become an account in a child of its own."""
        if len(self._children) >= _MOST:
            self._let_go(min(self._children, key=lambda one: self._children[one].asked))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        about = {key: plan[key] for key in ("site", "plugins")}
        words = json.dumps({**about, "account": asdict(account)})
        pid = start_child(account, theirs.fileno(), words, plan["limits"])
        theirs.close()
        child = self._children[account] = _Child(pid, ours)
        return child

    def tidy(self) -> None:
        """Let go those that have nothing to do, and end those that somebody has stopped."""
        late = time.monotonic() - IDLE
        for account in [one for one, child in self._children.items() if child.asked < late]:
            self._let_go(account)
        for child in self._children.values():
            with contextlib.suppress(ChildProcessError):
                if os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG):
                    os.kill(child.pid, signal.SIGKILL)

    def bury(self, pid: int) -> None:
        """Forget a process that has ended."""
        for account in [one for one, child in self._children.items() if child.pid == pid]:
            self._let_go(account)

    def let_all_go(self) -> None:
        """Start all anew when they are asked again."""
        for account in list(self._children):
            self._let_go(account)

    def _let_go(self, account: Listed) -> None:
        """Ask a child no more: it ends what is under way, then itself."""
        self._children.pop(account).way.close()
