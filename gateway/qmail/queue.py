"""qmail-queue: takes a message on descriptor 0 and its envelope on descriptor 1 (qmail spec 4)."""

import os
import signal
import stat
from fcntl import F_GETFL, fcntl

from gateway.qmail import envelope, handover
from gateway.qmail.place import Place

_CUSTOM = 82
_ERRORS = 6
_A_DAY = 86400
_LONGEST_TEXT = 255


def main(_name: str, _arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    # An alarm, as qmail's: a caller that hangs must not leave us behind for good.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(handover.TIMEOUT))
    signal.alarm(_A_DAY)
    code, text = queue(place.state, 0, 1)
    if code and text and _errors_wanted():
        letter = b"D" if code == handover.REFUSED else b"Z"
        os.write(_ERRORS, (letter + text)[:_LONGEST_TEXT])
        return _CUSTOM
    return code


def queue(state: bytes, message: int, addresses: int) -> tuple[int, bytes]:
    """Read both descriptors and hand over what they gave; gives the exit code and a text."""
    try:
        spool = handover.Spool()
        while block := os.read(message, handover.BLOCK):
            spool.write(block)
    except OSError as error:
        return handover.WRITE_ERROR, os.fsencode(error.strerror or "")
    try:
        raw = _read_envelope(addresses)
        envelope.parse(raw)
    except OSError:
        return envelope.CUT_SHORT, b""
    except envelope.EnvelopeError as error:
        return error.code, b""
    return handover.hand_over(state, spool, raw)


def _read_envelope(addresses: int) -> bytes:
    """Read to the end of the envelope; a caller may keep the descriptor open behind it."""
    raw = bytearray()
    while block := os.read(addresses, handover.BLOCK):
        raw += block
        if len(raw) > envelope.MAX_BYTES:
            raise envelope.EnvelopeError(envelope.NO_MEMORY)
        if raw.endswith(b"\0\0") and _whole(bytes(raw)):
            break
    return bytes(raw)


def _whole(raw: bytes) -> bool:
    try:
        envelope.parse(raw)
    except envelope.EnvelopeError as error:
        return error.code != envelope.CUT_SHORT
    return True


def _errors_wanted() -> bool:
    """Whether the caller has opened descriptor 6 for a text, as callers of notqmail do."""
    try:
        writable = fcntl(_ERRORS, F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        return writable and stat.S_ISFIFO(os.fstat(_ERRORS).st_mode)
    except OSError:
        return False
