"""`sendmail -bs`: SMTP on standard input and output, for mail programs that want it so (qmail spec 3, 8.2).

Who started it may send to anybody, as by any other of qmail's programs. A line that ends with a bare LF
counts as one, since no other host's reading of it matters on a pipe.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, handover, queueing
from gateway.qmail.envelope import MAX_RECIPIENTS

if TYPE_CHECKING:
    from typing import BinaryIO

    from gateway.qmail.place import Place

#: An address of more bytes is refused, as a line of more bytes ends the session.
_LONGEST_ADDRESS = 899
_LONGEST_LINE = 65536
_DECODED = re.compile(rb'\\(.?)|"', re.DOTALL)


def serve(place: Place) -> int:
    """Serve one session; gives the exit code."""
    with open(0, "rb", closefd=False) as source, open(1, "wb", closefd=False) as out:
        return _Session(place, source, out).serve()


class _Session:
    """One session: the transaction under way, and where its commands come from."""

    def __init__(self, place: Place, source: BinaryIO, out: BinaryIO) -> None:
        self._place = place
        self._source = source
        self._out = out
        self._name = (place.control(b"smtpgreeting") or place.control(b"me") or b"localhost").decode(
            "latin-1"
        )
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []

    def serve(self) -> int:
        self._say(f"220 {self._name} ESMTP")
        while line := self._source.readline(_LONGEST_LINE):
            verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
            reply = self._command(verb.upper(), argument.lstrip(b" "))
            self._say(reply)
            if reply.startswith(("221", "421")):
                return 0
        return 1

    def _command(self, verb: bytes, argument: bytes) -> str:
        if verb in (b"HELO", b"EHLO", b"RSET"):
            self._sender = None
            return {
                b"HELO": f"250 {self._name}",
                b"EHLO": f"250-{self._name}\r\n250-PIPELINING\r\n250 8BITMIME",
                b"RSET": "250 flushed",
            }[verb]
        if verb == b"MAIL":
            return self._mail(_address(argument))
        if verb == b"RCPT":
            return self._rcpt(_address(argument))
        if verb == b"DATA":
            return self._data()
        fixed = {
            b"NOOP": "250 ok",
            b"VRFY": "252 send some mail, i'll try my best",
            b"HELP": "214 see RFC 5321",
        }
        return f"221 {self._name}" if verb == b"QUIT" else fixed.get(verb, "502 unimplemented (#5.5.1)")

    def _mail(self, address: bytes) -> str:
        if len(address) > _LONGEST_ADDRESS:
            return "555 syntax error (#5.5.4)"
        self._sender, self._recipients = address, []
        return "250 ok"

    def _rcpt(self, address: bytes) -> str:
        if self._sender is None:
            return "503 MAIL first (#5.5.1)"
        if len(address) > _LONGEST_ADDRESS:
            return "555 syntax error (#5.5.4)"
        if len(self._recipients) == MAX_RECIPIENTS:
            return "452 too many recipients (#4.5.3)"
        self._recipients.append(address)
        return "250 ok"

    def _data(self) -> str:
        if self._sender is None:
            return "503 MAIL first (#5.5.1)"
        if not self._recipients:
            return "503 RCPT first (#5.5.1)"
        self._say("354 go ahead")
        spool = handover.Spool()
        if not self._read(spool):
            return "421 the message ended too early"
        sender, self._sender = self._sender, None
        try:
            number = queueing.enqueue(self._place, spool.blocks(), sender, self._recipients)
        except queueing.Failure as failure:
            return f"{554 if failure.code == PERMANENT else 451} {failure}"
        return f"250 ok qp {number}"

    def _read(self, spool: handover.Spool) -> bool:
        """Read to the final dot; whether it came."""
        fresh = True
        while piece := self._source.readline(_LONGEST_LINE):
            if fresh and piece in (b".\r\n", b".\n"):
                return True
            whole = piece.endswith(b"\n")
            if fresh and piece.startswith(b"."):
                piece = piece[1:]
            spool.write(piece[:-2] + b"\n" if piece.endswith(b"\r\n") else piece)
            fresh = whole
        return False

    def _say(self, reply: str) -> None:
        self._out.write(reply.encode("utf-8", "replace") + b"\r\n")
        self._out.flush()


def _address(argument: bytes) -> bytes:
    """Read the address of MAIL or RCPT, as liberally as qmail-smtpd (qmail spec 3.4)."""
    _, bracket, text = argument.partition(b"<")
    if not bracket:
        text = argument.partition(b":")[2].lstrip(b" ")
    if text.startswith(b"@"):
        text = text.partition(b":")[2]
    end = rb">" if bracket else rb" "
    path = re.match(rb'(?:\\.|"(?:\\.|[^"\\])*"|[^"\\%b])*' % end, text, re.DOTALL)
    return _DECODED.sub(lambda found: found[1] or b"", path[0] if path else b"")
