"""A link between two processes of the gateway: calls both ways over one socket, as lines of JSON.

A line is a list: `["call", id, name, arguments]`, answered by any number of `["row", id, value]` and then
`["done", id, value]` or `["error", id, kind, text]`; `["more", id, count]` asks for more rows, and
`["leave", id]` for no more. Id 0 wants no answer. What is sent in one turn of the loop is one write.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.errors import ControlError, GatewayError, LinkLost

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Mapping

    #: Gives a value, an awaitable of one, or rows one by one.
    Call = Callable[..., Any]

#: Rows that are on their way at one time: an asker that is slow holds the other side up, and no memory.
WINDOW = 200
#: A longer line ends the link; a message with 100,000 recipients is a tenth of it.
LONGEST = 256 * 1024**2


class Link(asyncio.Protocol):
    """One end. The other one's calls are answered by `calls`; when it is gone every call raises LinkLost."""

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._calls = calls
        self._ids = count(1)
        self._out: list[bytes] = []
        self._in: list[bytes] = []
        self._length = 0
        self._asked: dict[int, asyncio.Queue[list[Any]]] = {}
        self._answers: dict[int, _Answer] = {}
        self._transport: asyncio.Transport
        #: Set when the other end is gone, or this one was closed.
        self.lost = asyncio.Event()

    @classmethod
    async def open(cls, one: socket.socket, calls: Mapping[str, Call]) -> Link:
        """Speak over one end of a socket pair, which is ours from now on."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(calls), sock=one)
        return link

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Ask for one value. Raises what GatewayError the other side raised, or LinkLost."""
        id_, answers = self._ask(name, arguments)
        try:
            return (await _next(answers))[2]
        finally:
            del self._asked[id_]

    async def rows(self, name: str, /, **arguments: Any) -> AsyncIterator[Any]:
        """Ask for rows; one who leaves before the last is sent no more of them."""
        id_, answers = self._ask(name, arguments)
        taken, answer = 0, ["leave"]
        try:
            while (answer := await _next(answers))[0] == "row":
                yield answer[2]
                taken += 1
                if taken % (WINDOW // 2) == 0:
                    self._send("more", id_, WINDOW // 2)
        finally:
            del self._asked[id_]
            if answer[0] == "row":
                self._send("leave", id_)

    def tell(self, name: str, /, **arguments: Any) -> None:
        """Call without waiting for an answer; one that is gone hears nothing."""
        self._send("call", 0, name, arguments)

    def close(self) -> None:
        """Send what waits, and hang up."""
        self._flush()
        self._transport.close()

    def _ask(self, name: str, arguments: dict[str, Any]) -> tuple[int, asyncio.Queue[list[Any]]]:
        if self.lost.is_set():
            raise LinkLost("the other process of the gateway has ended")
        id_ = next(self._ids)
        answers = self._asked[id_] = asyncio.Queue()
        self._send("call", id_, name, arguments)
        return id_, answers

    def _send(self, *line: Any) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(json.dumps(line).encode() + b"\n")

    def _flush(self) -> None:
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = transport  # type: ignore[assignment] # a stream's

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more: whoever waits hears it, and work for the other side ends."""
        del exc
        self.lost.set()
        for answers in self._asked.values():
            answers.put_nowait(["error", 0, "LinkLost", "the other process of the gateway has ended"])
        for answer in self._answers.values():
            answer.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what came; a line may come in pieces."""
        self._in.append(data)
        self._length += len(data)
        if b"\n" not in data:
            if self._length > LONGEST:
                self._transport.abort()
            return
        *lines, rest = b"".join(self._in).split(b"\n")
        self._in, self._length = [rest], len(rest)
        for line in lines:
            self._line(json.loads(line))

    def _line(self, line: list[Any]) -> None:
        kind, id_ = line[0], line[1]
        if kind == "call":
            _Answer(self._send, self._answers, id_, self._calls.get(line[2]), line[3])
        elif kind in ("more", "leave"):
            if id_ in self._answers:
                self._answers[id_].allow(line[2] if kind == "more" else -1)
        elif id_ in self._asked:
            self._asked[id_].put_nowait(line)


class _Answer:
    """One call of the other side, in a task of its own; what it began it ends, whoever listens."""

    def __init__(
        self,
        send: Callable[..., None],
        answers: dict[int, _Answer],
        id_: int,
        call: Call | None,
        arguments: dict[str, Any],
    ) -> None:
        self._send = send
        self._id = id_
        self._room = asyncio.Semaphore(WINDOW)
        self._left = False
        self.task = asyncio.get_running_loop().create_task(self._run(call, arguments))
        # The loop itself holds tasks only weakly, so those without an id are held here, too.
        key = id_ or -id(self)
        answers[key] = self
        self.task.add_done_callback(lambda _: answers.pop(key))

    def allow(self, rows: int) -> None:
        """Let so many rows more go; -1: nobody wants any."""
        self._left = rows < 0
        for _ in range(abs(rows)):
            self._room.release()

    async def _run(self, call: Call | None, arguments: dict[str, Any]) -> None:
        try:
            if call is None:
                raise ControlError("not understood: there is no such command")  # noqa: TRY301
            said = await self._value(call(**arguments))
        except GatewayError as error:
            self._tell("error", type(error).__name__, str(error))
        except (KeyError, TypeError, ValueError) as error:
            self._tell("error", "ControlError", f"not understood: {error!r}")
        except Exception as error:  # noqa: BLE001 - the asker must hear it, and this side live on
            self._tell("error", "ControlError", f"failed: {error!r}")
        else:
            self._tell("done", said)

    async def _value(self, given: Any) -> Any:
        if hasattr(given, "__await__"):
            return await given
        if not hasattr(given, "__aiter__"):
            return given
        async with aclosing(given) as rows:
            async for row in rows:
                await self._room.acquire()
                if self._left:
                    break
                self._tell("row", row)
        return None

    def _tell(self, kind: str, *said: Any) -> None:
        if self._id:
            self._send(kind, self._id, *said)


async def _next(answers: asyncio.Queue[list[Any]]) -> list[Any]:
    """Wait for the next line of an answer; an error in it is raised here."""
    line = await answers.get()
    if line[0] != "error":
        return line
    kind = getattr(errors, line[2], None)
    raise (kind if isinstance(kind, type) and issubclass(kind, GatewayError) else ControlError)(line[3])
