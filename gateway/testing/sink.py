"""A receiving host for tries and tests: takes all mail and keeps each message as a file."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiosmtpd.smtp import SMTP

from gateway.envelope import new_id
from gateway.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiosmtpd.smtp import Envelope, Session


class Keeper:
    """Writes what arrives into `folder`: the envelope as two header fields, then the message."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep one message."""
        del server, session
        name = f"{new_id()}.eml"
        head = f"X-Envelope-From: <{envelope.mail_from}>\n"
        head += "".join(f"X-Envelope-To: <{recipient}>\n" for recipient in envelope.rcpt_tos)
        content = envelope.original_content or b""
        part = self._folder / f"{name}.part"
        part.write_bytes(head.encode("utf-8", "surrogateescape") + content.replace(b"\r\n", b"\n"))
        part.rename(self._folder / name)
        return f"250 2.0.0 kept as {name}"


@contextlib.asynccontextmanager
async def sink(host: str, port: int, folder: Path) -> AsyncIterator[int]:
    """Serve on host:port (0 picks one) while the context lasts; gives the port. Raises ListenError."""
    folder.mkdir(parents=True, exist_ok=True)
    loop = asyncio.get_running_loop()
    keeper = Keeper(folder)
    try:
        server = await loop.create_server(
            lambda: SMTP(keeper, hostname="sink.example", loop=loop), host, port
        )
    except OSError as error:
        raise ListenError(f"the demo's sink cannot listen at {host}:{port}: {error.strerror}") from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
