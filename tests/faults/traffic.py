"""Clients that send without an end and remember what had its 250, and a far host that remembers what came."""

import asyncio
import contextlib
import random
import re
from collections import defaultdict

SESSIONS = 8
PIECE = 16 * 1024
#: Who gets a message: one of ours, one elsewhere, both, and one whose mail is sent on to one of ours.
KINDS = {
    "local": ["box@example.org"],
    "remote": ["far@example.net"],
    "both": ["box@example.org", "far@example.net"],
    "forward": ["sent-on@example.org"],
}


class Load:
    """Sessions that send without an end, and remember every message that had its 250."""

    def __init__(self, port, seed, kinds=KINDS):
        self.port = port
        self.kinds = kinds
        self.accepted = set()
        self.sent = 0
        #: Set while a gateway runs.
        self.up = asyncio.Event()
        self._random = random.Random(seed)

    @contextlib.asynccontextmanager
    async def running(self):
        """Send while the block lasts; a reply that should not be ends it with an error."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sessions()) for _ in range(SESSIONS)]
            yield
            for task in tasks:
                task.cancel()

    async def _sessions(self):
        while True:
            await self.up.wait()
            with contextlib.suppress(OSError, EOFError):
                await self._session()
            await asyncio.sleep(0)

    async def _session(self):
        async with _connected(self.port) as (reader, writer):
            for _ in range(self._random.randrange(1, 6)):
                name = self._random.choice(list(self.kinds))
                token = f"{name}-{self.sent}"
                self.sent += 1
                reply = await self._message(reader, writer, token, self.kinds[name])
                assert reply.startswith("250"), reply

    async def send(self, token, recipients, size=0):
        """Send one message on a connection of its own; gives the reply to its content."""
        async with _connected(self.port) as (reader, writer):
            return await self._message(reader, writer, token, recipients, size)

    async def _message(self, reader, writer, token, recipients, size=0):
        await _say(reader, writer, f"MAIL FROM:<{token}@sender.example>")
        for address in recipients:
            await _say(reader, writer, f"RCPT TO:<{address}>")
        await _say(reader, writer, "DATA", "354")
        content = text(token) + b"more\n" * (size // 5)
        wire = content.replace(b"\n", b"\r\n") + b".\r\n"
        # In pieces, as a network would bring it.
        for start in range(0, len(wire), PIECE):
            writer.write(wire[start : start + PIECE])
            await asyncio.sleep(0.001 * (start > 0))
        reply = await _reply(reader)
        if reply.startswith("250"):
            self.accepted.add(token)
        return reply


class Sink:
    """The far host: remembers what came, and while which gateway ran."""

    def __init__(self):
        self.run = 0
        self.port = 0
        #: token -> (run, text) of every copy.
        self.copies = defaultdict(list)

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
            writer.write(b"220 sink.example\r\n")
            while line := await reader.readline():
                verb = line[:4].upper().strip()
                if verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    content = (await reader.readuntil(b"\r\n.\r\n"))[:-3].replace(b"\r\n", b"\n")
                    self.copies[token_of(content)].append((self.run, content))
                writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n")
                await writer.drain()
        writer.close()


def text(token):
    """Give a message whose every line shows whose it is."""
    many = 4000 if token.startswith("big") else 200
    lines = f"This line is of {token}.\n" * (1 + sum(token.encode()) * 31 % many)
    return f"Subject: {token}\nX-Token: {token}\n\n{lines}The end of {token}.\n".encode()


def token_of(content):
    return re.search(rb"^X-Token: (.*)$", content, re.MULTILINE)[1].decode()


def kind(token):
    return token.partition("-")[0]


@contextlib.asynccontextmanager
async def _connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await _reply(reader, "220")
        await _say(reader, writer, "EHLO client.example")
        yield reader, writer
    finally:
        writer.close()


async def _say(reader, writer, line, wanted="250"):
    writer.write(f"{line}\r\n".encode())
    await _reply(reader, wanted)


async def _reply(reader, wanted=""):
    """Read a whole reply, and give its last line."""
    while line := (await reader.readline()).decode():
        if line.startswith("421"):  # the gateway stops
            raise EOFError
        assert line.startswith(wanted), line
        if line[3] == " ":
            return line
    raise EOFError
