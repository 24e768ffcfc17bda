"""Queues a message as qmail's programs do: by the program that QMAILQUEUE names, or by the gateway."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, TEMPORARY, envelope, handover

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.qmail.place import Place

_NO_PROGRAM = 120
_CUSTOM = 82
_LONGEST_TEXT = 255
#: Exit codes of qmail-queue that mean "for good" (qmail spec 4.3).
_PERMANENT = {11, 115, *range(12, 41)}
#: Descriptors of the program: message, envelope, and the text of a refusal.
_MESSAGE, _ENVELOPE, _TEXT = 0, 1, 6
#: Above all of these, so that none is in another's way.
_HIGH = 10
_TOO_LONG = "envelope address too long for qmail-queue (#5.1.3)"
_WORDS = {
    envelope.TOO_LONG: _TOO_LONG,
    115: _TOO_LONG,
    handover.REFUSED: "mail server permanently rejected message (#5.3.0)",
    handover.DEFERRED: "mail server temporarily rejected message (#4.3.0)",
    72: "connection to mail server timed out (#4.4.1)",
    73: "connection to mail server rejected (#4.4.1)",
    handover.CONNECTION_LOST: "communication with mail server failed (#4.4.2)",
    handover.WRITE_ERROR: "qq write error or disk full (#4.3.0)",
    envelope.CUT_SHORT: "qq read error (#4.3.0)",
    _NO_PROGRAM: "unable to exec qq (#4.3.0)",
}


class Failure(Exception):
    """A message that was not queued; `code` is the exit code for it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def enqueue(place: Place, message: Iterator[bytes], sender: bytes, recipients: Sequence[bytes]) -> str:
    """Queue a message; gives its number or id. Raises Failure."""
    program = place.env.get(b"QMAILQUEUE")
    addresses = envelope.build(sender, list(recipients))
    if program:
        number, code, text = _by_program(os.path.join(place.home, program), place.env, message, addresses)
    else:
        number, code, text = _by_gateway(place.state, message, addresses)
    if code:
        raise _failure(code, text)
    return number


def read(descriptor: int) -> Iterator[bytes]:
    """Give the rest of what a descriptor holds."""
    while block := os.read(descriptor, handover.BLOCK):
        yield block


def _by_gateway(state: bytes, message: Iterator[bytes], addresses: bytes) -> tuple[str, int, bytes]:
    try:
        envelope.parse(addresses)
    except envelope.EnvelopeError as error:
        return "", error.code, b""
    spool = handover.Spool()
    for block in message:
        spool.write(block)
    code, text = handover.hand_over(state, spool, addresses)
    return os.fsdecode(text), code, text


def _by_program(
    path: bytes, env: dict[bytes, bytes], message: Iterator[bytes], addresses: bytes
) -> tuple[str, int, bytes]:
    """Run a program as qmail-queue; gives its process number, its exit code and the text of a refusal."""
    message_end, envelope_end, text_end = os.pipe(), os.pipe(), os.pipe()
    theirs = {_MESSAGE: message_end[0], _ENVELOPE: envelope_end[0], _TEXT: text_end[1]}
    high = {wanted: fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _HIGH) for wanted, end in theirs.items()}
    try:
        number = os.posix_spawn(
            path,
            [path],
            env,
            file_actions=[(os.POSIX_SPAWN_DUP2, end, wanted) for wanted, end in high.items()],
            setsigdef=[signal.SIGPIPE],
        )
    except OSError:
        number = 0
    for end in (*theirs.values(), *high.values()):
        os.close(end)
    whole = bool(number)
    for end, data in ((message_end[1], message), (envelope_end[1], iter([addresses]))):
        # A message that was cut must not get an envelope: the end of the envelope is what queues it.
        whole = whole and _written(end, data)
        os.close(end)
    with open(text_end[0], "rb") as file:
        text = file.read(_LONGEST_TEXT)
    if not number:
        return "", _NO_PROGRAM, b""
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    return str(number), code if code or whole else envelope.CUT_SHORT, text


def _written(descriptor: int, data: Iterator[bytes]) -> bool:
    with contextlib.suppress(BrokenPipeError):
        for block in data:
            handover.write_all(descriptor, block)
        return True
    return False


def _failure(code: int, text: bytes) -> Failure:
    said = text.decode("utf-8", "backslashreplace").replace("\r", " ").replace("\n", " ").strip()
    if code == _CUSTOM and len(text) > 2:  # noqa: PLR2004 - shorter is no text (qmail spec 4.3)
        return Failure(PERMANENT if said.startswith("D") else TEMPORARY, said[1:])
    permanent = code in _PERMANENT
    unnamed = (
        f"qq permanent problem {code} (#5.3.0)" if permanent else f"qq temporary problem {code} (#4.3.0)"
    )
    words = _WORDS.get(code, unnamed)
    return Failure(PERMANENT if permanent else TEMPORARY, f"{words}: {said}" if said else words)
