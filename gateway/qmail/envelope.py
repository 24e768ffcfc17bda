"""The envelope as qmail-queue takes it (qmail spec 4.1): `F`sender NUL, `T`recipient NUL ..., NUL. Pure."""

#: An address of this many bytes or more is refused.
LONGEST = 1003
#: What one envelope may hold, in bytes and in recipients.
MAX_BYTES = 16 * 1024 * 1024
MAX_RECIPIENTS = 250_000

TOO_LONG = 11
NO_MEMORY = 51
CUT_SHORT = 54
MALFORMED = 91


class EnvelopeError(Exception):
    """An envelope that cannot be taken; `code` is the exit code that says so."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def build(sender: bytes, recipients: list[bytes]) -> bytes:
    """Write an envelope."""
    return b"F%b\0%b\0" % (sender, b"".join(b"T%b\0" % one for one in recipients))


def parse(data: bytes) -> tuple[bytes, list[bytes]]:
    """Read sender and recipients; what follows the end counts for nothing. Raises EnvelopeError."""
    sender, at = _record(data, 0, b"F")
    recipients: list[bytes] = []
    while data[at : at + 1] != b"\0":
        if len(recipients) == MAX_RECIPIENTS:
            raise EnvelopeError(NO_MEMORY)
        recipient, at = _record(data, at, b"T")
        recipients.append(recipient)
    return sender, recipients


def _record(data: bytes, at: int, letter: bytes) -> tuple[bytes, int]:
    found = data[at : at + 1]
    if found != letter:
        raise EnvelopeError(MALFORMED if found else CUT_SHORT)
    end = data.find(b"\0", at + 1, at + 1 + LONGEST)
    if end < 0:
        raise EnvelopeError(TOO_LONG if len(data) - at > LONGEST else CUT_SHORT)
    return data[at + 1 : end], end + 1
