"""One file over HTTPS, in bounds: no redirect, no proxy, no more than a policy may be long."""

from __future__ import annotations

import asyncio
import io
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    import ssl

HTTPS = 443
#: Bytes of a policy (RFC 8461 section 3.3), and of what comes before it.
LARGEST = 64 * 1024 + 16 * 1024


class NotGiven(Exception):
    """The host gave another answer than the file."""


async def get(host: str, ip: str, path: str, authorities: ssl.SSLContext) -> str:
    """Fetch a text from a host at this address; the caller bounds the time.

    Raises OSError when there is no connection or the certificate will not do, NotGiven, ValueError.
    """
    reader, writer = await asyncio.open_connection(
        ip, HTTPS, ssl=authorities, server_hostname=host, limit=LARGEST
    )
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
        raw = b""
        while len(raw) <= LARGEST and (more := await reader.read(LARGEST)):
            raw += more
    finally:
        writer.close()
    if len(raw) > LARGEST:
        raise NotGiven("the answer is too long")
    return _body(raw)


class _Heard:
    """Bytes as the socket that HTTPResponse reads."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        """Give them as a file."""
        return io.BytesIO(self._raw)


def _body(raw: bytes) -> str:
    heard: Any = _Heard(raw)
    sock: socket.socket = heard
    response = HTTPResponse(sock)
    try:
        response.begin()
        kind = response.headers.get_content_type()
        if response.status != 200 or kind != "text/plain":  # noqa: PLR2004
            raise NotGiven(f"the answer is {response.status} {kind}")
        return response.read().decode("utf-8")
    except HTTPException as error:
        raise NotGiven(f"the answer is no HTTP: {error!r}") from error
