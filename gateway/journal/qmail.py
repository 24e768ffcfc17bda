"""The lines that qmail-send wrote, for scripts that read them (qmail spec 5.7): events in, lines out."""

from __future__ import annotations

import heapq
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.journal.writer import Record
    from gateway.settings import Concurrency

_RESULTS = {
    "delivery.delivered": "success",
    "delivery.failed": "failure",
    "message.expired": "failure",
    "delivery.deferred": "deferral",
}
_PREFIXES = {"critical": "alert", "error": "warning"}
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Line ends become `/`, all that is no visible ASCII and `%` become `_`.
_SAFE = bytes(47 if c == 10 else 95 if c <= 32 or c >= 127 or c == 37 else c for c in range(256))  # noqa: PLR2004 - ASCII


class QmailLines:
    """Makes events into lines; one for each output, since it numbers what it has seen.

    A message has the lowest number that is free, until it ends; then the number is used again, as inode
    numbers were. Its `qp` is never used again, so that a `bounce` line leads to the bounce. Deliveries count
    from 1.
    """

    def __init__(self, concurrency: Callable[[], Concurrency]) -> None:
        self._concurrency = concurrency
        #: Message -> (its number, its qp).
        self._messages: dict[str, tuple[int, int]] = {}
        self._free: list[int] = []
        self._taken = 0
        #: (message, recipient) -> (delivery, channel) of those under way.
        self._deliveries: dict[tuple[str, int], tuple[int, str]] = {}
        self._begun = 0

    def lines(self, record: Record) -> Iterator[str]:
        """Give the lines of one event, in none of which a line ends."""
        match record["event"]:
            case "gateway.started":
                yield self._status()
            case "gateway.stopped":
                yield "status: exiting"
            case "message.accepted":
                number, qp = self._number(record["message"])
                size, sender = record.get("size", 0), safe(record.get("sender", ""))
                yield f"new msg {number}"
                yield f"info msg {number}: bytes {size} from <{sender}> qp {qp} uid {os.getuid()}"
            case "delivery.started":
                yield from self._start(record)
            case name if name in _RESULTS:
                yield from self._end(record, _RESULTS[name])
            case "message.bounced":
                yield from self._bounced(record)
            case "message.finished" | "message.deleted":
                number, _ = self._number(record["message"])
                del self._messages[record["message"]]
                heapq.heappush(self._free, number)
                yield f"end msg {number}"
            case name if record["severity"] in _PREFIXES:
                said = record.get("error") or record.get("text") or record.get("reason") or ""
                yield f"{_PREFIXES[record['severity']]}: {name}: {safe(str(said))}"

    def _start(self, record: Record) -> Iterator[str]:
        number, _ = self._number(record["message"])
        self._begun += 1
        channel = "remote" if record.get("channel") == "remote" else "local"
        self._deliveries[_key(record)] = self._begun, channel
        recipient = safe(record.get("recipient", ""))
        yield f"starting delivery {self._begun}: msg {number} to {channel} {recipient}"
        yield self._status()

    def _end(self, record: Record, result: str) -> Iterator[str]:
        if _key(record) not in self._deliveries:  # it could not even begin
            yield from self._start(record)
        number, _ = self._deliveries.pop(_key(record))
        text = record.get("text", "")
        yield f"delivery {number}: {result}: {safe(text if text.endswith(chr(10)) else text + chr(10))}"
        yield self._status()

    def _bounced(self, record: Record) -> Iterator[str]:
        number, _ = self._number(record["message"])
        if bounce := record.get("bounce"):
            yield f"bounce msg {number} qp {self._number(bounce)[1]}"
        elif record.get("reason") == "triple_bounce":
            yield f"triple bounce: discarding bounce/{number}"

    def _number(self, message: str) -> tuple[int, int]:
        if message not in self._messages:
            self._taken += 1
            free = heapq.heappop(self._free) if self._free else len(self._messages) + 1
            self._messages[message] = free, self._taken
        return self._messages[message]

    def _status(self) -> str:
        most = self._concurrency()
        channels = [channel for _, channel in self._deliveries.values()]
        local, remote = channels.count("local"), channels.count("remote")
        return f"status: local {local}/{most.local} remote {remote}/{most.remote}"


def safe(text: str) -> str:
    """Write a text as qmail-send did: `ok fine 100%` and a line end become `ok_fine_100_/`."""
    raw = _SURROGATE.sub("_", text).encode()
    return raw.translate(_SAFE).decode("ascii")


def _key(record: dict[str, Any]) -> tuple[str, int]:
    return record.get("message", ""), record.get("number", 0)
