"""Line ends of a body: CRLF on the wire, LF in a Message; in pieces, in bounded memory. Pure: no IO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.milter.wire import LARGEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.message import Message


class Unwired:
    """Turns CRLF into LF; a piece may end between the two."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Give what is certain so far."""
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        return data[: len(data) - len(self._held)].replace(b"\r\n", b"\n")

    def rest(self) -> bytes:
        """Give what was held back, at the end."""
        rest, self._held = self._held, b""
        return rest


def wired(blocks: Iterable[bytes], largest: int = LARGEST) -> Iterator[bytes]:
    """Turn LF into CRLF, and cut into pieces that fit into a packet."""
    for block in blocks:
        data = block.replace(b"\n", b"\r\n")
        for start in range(0, len(data), largest):
            yield data[start : start + largest]


def body_of(message: Message) -> Iterator[bytes]:
    """Give the body of a message in blocks, without the empty line that ends the header."""
    blocks = message.chunks()
    next(blocks)
    for i, block in enumerate(blocks):
        yield block if i else block.removeprefix(b"\n")
