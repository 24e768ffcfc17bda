"""A mail host on loopback that answers by a script and keeps what it heard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

#: A reply, or None to hang up in its place, or a function that does what it likes.
Answer = str | None | Callable[[asyncio.StreamWriter], Awaitable[None]]

_USUAL: dict[str, Answer] = {
    "greeting": "220 host.example",
    "EHLO": "250 host.example",
    "HELO": "250 host.example",
    "DATA": "354 go on",
    "QUIT": "221 bye",
    ".": "250 2.0.0 taken",
}


class ScriptedHost:
    """`async with ScriptedHost({"RCPT": "550 no"}) as host:` serves on `host.port` until the block ends.

    The script maps a verb, "greeting" or "." (the end of content) to an answer, or to a list of answers that
    are given in turn, the last one for good. What it does not name is answered as hosts usually do.
    """

    def __init__(
        self,
        script: Mapping[str, Answer | Sequence[Answer]] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._host = host
        self._script = {verb: _in_turn(answer) for verb, answer in {**_USUAL, **(script or {})}.items()}
        self._tls = tls
        self._last = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        #: Command lines of all connections, without line ends.
        self.commands: list[str] = []
        #: What came behind each DATA, as it came, without the final dot's line.
        self.contents: list[bytes] = []
        #: Connections so far.
        self.connections = 0
        #: Set when a connection has ended.
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._server is not None:
            self._server.close()
        if self._tasks:
            # What was sent last (QUIT) is heard, too; who has not hung up by then is hung up on.
            _done, late = await asyncio.wait(self._tasks, timeout=0.1)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if task := asyncio.current_task():
            self._tasks.add(task)
        try:
            if await self._answer(writer, "greeting"):
                await self._commands(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.ended.set()

    async def _commands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.commands.append(line.decode("utf-8", "replace").removesuffix("\r\n"))
            verb = self.commands[-1].partition(" ")[0].upper()
            if not await self._answer(writer, verb) or verb == "QUIT":
                return
            if verb == "STARTTLS" and self._tls:
                await writer.start_tls(self._tls)
            if verb == "DATA" and self._last.startswith("354"):
                self.contents.append(await _content(reader))
                if not await self._answer(writer, "."):
                    return

    async def _answer(self, writer: asyncio.StreamWriter, verb: str) -> bool:
        """Answer, and tell whether the connection goes on."""
        answers = self._script.get(verb, ["250 fine"])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self._last = answer if isinstance(answer, str) else ""
        if isinstance(answer, str):
            writer.write(answer.encode("utf-8", "surrogateescape") + b"\r\n")
            await writer.drain()
        elif answer is not None:
            await answer(writer)
        return answer is not None and not writer.is_closing()


def _in_turn(answer: Answer | Sequence[Answer]) -> list[Answer]:
    return [answer] if answer is None or isinstance(answer, str) or callable(answer) else list(answer)


async def _content(reader: asyncio.StreamReader) -> bytes:
    lines = []
    while (line := await reader.readline()) not in (b".\r\n", b""):
        lines.append(line)
    return b"".join(lines)
