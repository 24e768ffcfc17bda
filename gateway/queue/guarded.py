"""The message of a delivery, whose end is not given away when the claim is not ours any more.

A node that was stopped, or cut from a shared queue, is taken for dead, and others deliver what it had. When
it goes on, what it was about to deliver ends here: without its last bytes no plugin sends a final dot, or
gives a file its name.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gateway.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Guarded(Message):
    """A message that asks `ours` behind its last byte. Whoever reads it may get OSError, as from a disk."""

    __slots__ = ("_ours",)

    def __init__(self, message: Message, ours: Callable[[], bool]) -> None:
        super().__init__(message.header, message.body)
        self._ours = ours

    def chunks(self) -> Iterator[bytes]:
        """Give the message in pieces, and its end only while the claim is ours."""
        yield from super().chunks()
        if not self._ours():
            raise OSError(errno.ESTALE, "another node has taken this message over")

    def copy(self) -> Message:
        """Give a message whose edits do not touch this one; it asks, too."""
        return Guarded(self, self._ours)
