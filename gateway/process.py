"""One worker's process, as the supervisor sees it: its link, its signs of life, its stacks, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.link import Link

if TYPE_CHECKING:
    from asyncio.subprocess import Process as Subprocess
    from collections.abc import Mapping

    from gateway.link import Call

#: The module is found as we were found ourselves, and never in the folder that we stand in by chance.
_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from gateway.child import main; main()"
#: The signal that asks a process for the stacks of its threads.
STACKS = signal.SIGUSR2
#: A process that runs writes its stacks within this many seconds, however busy it is.
_STACKS_WITHIN = 1.0
#: Silence this long is the end of them.
_QUIET = 0.1
_MOST = 256 * 1024


class Process:
    """One life of one worker. `spawn` it; `link` is how to talk to it."""

    def __init__(self, running: Subprocess, way: socket.socket, stacks: int) -> None:
        self._running = running
        self._stacks = open(stacks, "rb", buffering=0)  # noqa: SIM115 - a descriptor; closed in `ended`
        self.pid = running.pid
        self.link: Link
        #: The way by which sockets are handed over.
        self.way = way
        self.born = self.beaten = time.monotonic()

    @classmethod
    async def spawn(cls, calls: Mapping[str, Call]) -> Process:
        """Start a process that answers over its link; `calls` are what it may ask of us."""
        ours, theirs = socket.socketpair()
        way, their_way = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stacks, their_stacks = os.pipe()
        os.set_blocking(stacks, False)
        given = (theirs.fileno(), their_way.fileno(), their_stacks)
        try:
            running = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-c",
                _CODE,
                *map(str, given),
                json.dumps(sys.path),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=given,
            )
        finally:
            theirs.close()
            their_way.close()
            os.close(their_stacks)
        made = cls(running, way, stacks)
        made.link = await Link.open(ours, {**calls, "beat": made.beat})
        return made

    def beat(self) -> None:
        """It has given a sign of life."""
        self.beaten = time.monotonic()

    async def ended(self) -> int:
        """Wait for its end; gives the exit status, or the signal as a negative number."""
        status = await self._running.wait()
        self.link.close()
        self.way.close()
        self._stacks.close()
        return status

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._running.kill()

    def stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP, a debugger): then it cannot give signs of life."""
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state in ("T", "t")
        return False

    async def stacks(self) -> str:
        """Have it write what its threads are doing, which it does even when it is frozen."""
        with contextlib.suppress(ProcessLookupError):
            self._running.send_signal(STACKS)
        found, grown = b"", time.monotonic()
        while time.monotonic() - grown < (_QUIET if found else _STACKS_WITHIN) and len(found) < _MOST:
            await asyncio.sleep(_QUIET / 4)
            more = b"" if self._stacks.closed else self._stacks.read(_MOST)
            if more:
                found, grown = found + more, time.monotonic()
        return found.decode("utf-8", "replace")
