"""Runs the program that a program was given, as qmail's wrappers do."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, TEMPORARY, handover

if TYPE_CHECKING:
    from gateway.qmail.place import Place

#: Errors of starting a program that may pass by themselves (qmail spec, appendix A).
_PASSING = ("EAGAIN", "ENOMEM", "EIO", "ENFILE", "EMFILE", "ETXTBSY", "ENOSPC", "ETIMEDOUT")


class CrashError(Exception):
    """The program was killed, or could not be started just now."""


class NotFoundError(Exception):
    """There is no such program, or it may not be run."""


def start(place: Place, command: list[bytes], stdin: int | None = None) -> int:
    """Start a program found by PATH; gives its process number. Raises CrashError, NotFoundError."""
    actions = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
    try:
        return os.posix_spawnp(
            command[0], command, place.env, file_actions=actions, setsigdef=[signal.SIGPIPE]
        )
    except ValueError as error:
        raise NotFoundError from error  # the empty name
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) in _PASSING:
            raise CrashError from error
        raise NotFoundError from error


def ended(number: int) -> int:
    """Wait for a program and give its exit code. Raises CrashError."""
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    if code < 0:
        raise CrashError
    return code


def run(place: Place, command: list[bytes]) -> int:
    """Run a program to its end; one that is not there has failed with 100. Raises CrashError."""
    try:
        return ended(start(place, command))
    except NotFoundError:
        return 100


def feed(name: str, place: Place, command: list[bytes], head: bytes) -> int:
    """Run a program with `head` and then our own input as its input; gives its exit code."""
    reads, writes = os.pipe()
    try:
        number = start(place, command, reads)
        os.close(reads)
        _write(writes, head)
        return ended(number)
    except NotFoundError:
        sys.stderr.write(f"{name}: fatal: unable to run {os.fsdecode(command[0])!a}\n")
        return PERMANENT
    except CrashError:
        sys.stderr.write(f"{name}: fatal: the program failed for now\n")
        return TEMPORARY


def _write(writes: int, head: bytes) -> None:
    """Write all there is; a program that does not want all of it may leave."""
    try:
        handover.write_all(writes, head)
        while block := os.read(0, handover.BLOCK):
            handover.write_all(writes, block)
    except BrokenPipeError:
        pass
    finally:
        os.close(writes)
