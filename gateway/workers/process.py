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

from gateway.errors import LinkLost
from gateway.link import Link
from gateway.workers import handover

if TYPE_CHECKING:
    from asyncio.subprocess import Process as Subprocess
    from collections.abc import Mapping, Sequence
    from io import FileIO

    from gateway.link import Call
    from gateway.listeners import Sockets

#: The module is found as we were found ourselves, and never in the folder that we stand in by chance.
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop())
from gateway.workers.child import main
main()
"""
#: The signal that asks a process for the stacks of its threads.
STACKS = signal.SIGUSR2
#: A process that runs writes its stacks within this many seconds, however busy it is.
_STACKS_WITHIN = 1.0
#: Silence this long is the end of them.
_QUIET = 0.1
_MOST = 256 * 1024


class Process:
    """One life of one worker. `spawn` it; `link` is how to talk to it."""

    def __init__(self, running: Subprocess, way: socket.socket, stacks: FileIO) -> None:
        self._running = running
        self._stacks = stacks
        self.pid = running.pid
        self.link: Link
        self._way = way
        self.born = self.beaten = time.monotonic()

    @classmethod
    async def spawn(cls, calls: Mapping[str, Call]) -> Process:
        """Start a process that answers over its link; `calls` are what it may ask of us. Raises OSError."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            link, their_link = socket.socketpair()
            way, their_way = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            reading, writing = os.pipe()
            stacks, their_stacks = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
            os.set_blocking(reading, False)
            for one in (link, way, stacks):
                ours.callback(one.close)
            for other in (their_link, their_way, their_stacks):
                theirs.callback(other.close)
            given = (their_link.fileno(), their_way.fileno(), writing)
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
            made = cls(running, way, stacks)
            made.link = await Link.open(link, {**calls, "beat": made.beat})
            ours.pop_all()
        return made

    async def hand(self, sockets: Sockets) -> int:
        """Hand open sockets over; gives of how many listeners. Raises LinkLost."""
        for endpoint, some in sockets.items():
            await self.hand_one(str(endpoint), some)
        return len(sockets)

    async def hand_one(self, name: str, sockets: Sequence[socket.socket]) -> None:
        """Hand sockets over under a name. Raises LinkLost."""
        try:
            handover.give(self._way, name, sockets)
        except OSError as error:
            raise LinkLost(f"worker process {self.pid} has ended") from error
        await self.link.call("take")

    def beat(self) -> None:
        """It has given a sign of life."""
        self.beaten = time.monotonic()

    async def ended(self) -> int:
        """Wait for its end; gives the exit status, or the signal as a negative number."""
        status = await self._running.wait()
        self.link.close()
        self._way.close()
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
