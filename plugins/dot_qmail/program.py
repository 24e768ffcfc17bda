"""Runs one program line as qmail-local did: by `/bin/sh -c`, in the home, with the message on fd 0."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import point

from .failure import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

#: Exit codes that fail for good; 0 and 99 are success, all others fail for now (qmail spec 6.6).
HARD = frozenset({100, 112, 64, 65, 70, 76, 77, 78})
STOP = 99
#: What is kept of a program's output for the report; the rest is read and dropped.
OUTPUT_LIMIT = 3000
BLOCK = 64 * 1024
#: How often to see whether the delivery was called off, in seconds.
CALLED_OFF = 1.0

_STATUS = re.compile(rb"\(#([245]\.\d{1,3}\.\d{1,3})\)")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take."""

    #: Seconds until it is killed with all that it has started.
    time: float
    #: Set when nobody waits for the delivery any more.
    called_off: Event
    #: Bytes of memory (address space) of each of its processes.
    memory: int = resource.RLIM_INFINITY


def run(
    command: str, home: str, environment: Mapping[str, str], stdin: int, limits: Limits
) -> tuple[bool, bytes]:
    """Run a command. Gives (whether the lines after it count, its output). Raises DeliveryError."""
    os.lseek(stdin, 0, os.SEEK_SET)
    try:
        point("program.start")
        process = subprocess.Popen(
            _bounded(command, limits.memory),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home,
            env=dict(environment),
            umask=0o077,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise DeliveryError("4.3.0", "a program cannot be started") from error
    with process:
        output = _wait(process, limits)
    point("program.ended")
    return _judge(process.returncode, output), output


def _bounded(command: str, memory: int) -> list[str]:
    """Give how to start a command, in a shell that holds it to its memory unless we are held ourselves."""
    held = resource.getrlimit(resource.RLIMIT_AS)[1]
    if memory == resource.RLIM_INFINITY or (held != resource.RLIM_INFINITY and held <= memory):
        return ["/bin/sh", "-c", command]
    kilobytes = str(memory // 1024)
    return ["/bin/sh", "-c", 'ulimit -v "$1" && exec /bin/sh -c "$2"', "sh", kilobytes, command]


def _judge(code: int, output: bytes) -> bool:
    """Say whether to go on behind a program that ended with this code. Raises DeliveryError."""
    if code in (0, STOP):
        return code == 0
    if code < 0:
        raise DeliveryError("4.3.0", "a program was killed by a signal")
    hard = code in HARD
    said = _STATUS.findall(output)
    status = said[-1].decode() if said and said[-1].startswith(b"5" if hard else b"4") else ""
    raise ProgramError(status, output, hard=hard)


class ProgramError(DeliveryError):
    """A program said no; what it printed is the report."""

    def __init__(self, status: str, output: bytes, *, hard: bool) -> None:
        super().__init__("", "" if output else "a program failed", hard=hard)
        self.status = status
        self.output = output


def _wait(process: subprocess.Popen[bytes], limits: Limits) -> bytes:
    """Read what the program prints until it ends; what still holds its output then is not waited for."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    deadline = time.monotonic() + limits.time
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    kept = bytearray()
    ended = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while True:
                pause = min(CALLED_OFF, max(deadline - time.monotonic(), 0))
                ready = {key.fd for key, _ in selector.select(pause)}
                if pipe in ready and not _read(pipe, kept):
                    selector.unregister(pipe)
                if ended in ready:
                    break
                if time.monotonic() > deadline or limits.called_off.is_set():
                    _kill(process)
                    raise DeliveryError("4.3.0", "a program took too long and was ended")
        finally:
            os.close(ended)
    # A pipe holds no more than one block, so this is all that the program itself has printed.
    _read(pipe, kept)
    process.wait()
    return bytes(kept[:OUTPUT_LIMIT])


def _read(pipe: int, kept: bytearray) -> bool:
    """Read once, keeping what fits; False at the end, or when nothing is there now."""
    try:
        data = os.read(pipe, BLOCK)
    except BlockingIOError:
        return False
    kept += data[: OUTPUT_LIMIT - len(kept)]
    return bool(data)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
