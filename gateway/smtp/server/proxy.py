"""Who a client is when another host speaks for it: the PROXY protocol, version 1 and 2, and XCLIENT.

Both count from hosts that the listener names, and from nobody else. Whom a PROXY header has named is the
other end from then on: XCLIENT is for that client to say or not, whatever the proxy itself may.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import struct
from typing import TYPE_CHECKING

from aiosmtpd.proxy_protocol import V2_CMD, V2_SIGNATURE, get_proxy

from gateway.envelope import Client
from gateway.smtp import reply as replies
from gateway.smtp.parameters import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.settings.units import Network
    from gateway.smtp.reply import Reply
    from gateway.smtp.server.connection import Connection

#: The specification's longest first version, and what a second may carry besides addresses.
_LONGEST_V1, _LONGEST_V2 = 107, 4096
_WAIT = 10.0
#: Attributes of XCLIENT that mean something here.
ATTRIBUTES = ("NAME", "ADDR", "PORT", "HELO", "LOGIN", "PROTO", "DESTADDR", "DESTPORT")
_UNKNOWN = {"[UNAVAILABLE]", "[TEMPUNAVAIL]"}


def trusted(ip: str, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of these."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    return any(address in network for network in networks)


async def read_header(link: socket.socket, loop: asyncio.AbstractEventLoop) -> tuple[Client, str] | None:
    """Read whom a proxy speaks for, and nothing behind it: the client, and the address that it reached.

    None when the proxy speaks for itself. Raises OSError for what is no header.
    """
    async with asyncio.timeout(_WAIT):
        header = await _take(link, loop)
    reader = asyncio.StreamReader()
    reader.feed_data(header)
    reader.feed_eof()
    found = await get_proxy(reader)
    if not found.valid:
        raise ConnectionAbortedError(found.error)
    # Who reached the proxy by a socket with a path has no address, as the proxy itself has none (LOCAL).
    if found.command == V2_CMD.LOCAL or found.src_addr is None or isinstance(found.src_addr, bytes):
        return None
    return Client(str(found.src_addr), found.src_port or 0), str(found.dst_addr)


async def _take(link: socket.socket, loop: asyncio.AbstractEventLoop) -> bytes:
    """Take the header off the socket, exactly; all but the rest of it is only looked at."""
    length, seen = 0, b""
    while not length:
        former = len(seen)
        await _readable(link, loop)
        seen = link.recv(_LONGEST_V2, socket.MSG_PEEK)
        if len(seen) == former:
            # More is to come and the socket is readable all the time; the timer ends this wait.
            await asyncio.sleep(0.01)
        length = _length(seen)
    return link.recv(length)


async def _readable(link: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    ready = asyncio.Event()
    loop.add_reader(link, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(link)


def _length(seen: bytes) -> int:
    """Give the length of the header that begins so, 0 while it cannot be told. Raises OSError."""
    if not seen:
        raise ConnectionResetError
    if V2_SIGNATURE[: len(seen)] == seen[: len(V2_SIGNATURE)]:
        if len(seen) < 16:  # noqa: PLR2004 the fixed part
            return 0
        length = 16 + struct.unpack_from(">H", seen, 14)[0]
        if length > _LONGEST_V2:
            raise ConnectionAbortedError
        return length if len(seen) >= length else 0
    if not seen.startswith(b"PROXY "[: len(seen)]):
        raise ConnectionAbortedError
    end = seen.find(b"\r\n")
    if end < 0 and len(seen) >= _LONGEST_V1:
        raise ConnectionAbortedError
    return end + 2 if end >= 0 else 0


async def xclient(connection: Connection, argument: str) -> Reply:
    """Take another host's word for who the client is, and begin anew (Postfix, XCLIENT_README).

    Nothing of what the host was itself is the client's: name, login, certificate, rights, limits.
    """
    if not trusted(connection.peer, connection.server.listener.xclient):
        raise Refused(replies.NOT_IMPLEMENTED, "not_implemented")
    if connection.transaction is not None:
        raise Refused(replies.NESTED_MAIL, "sequence")
    given = _attributes(argument)
    was = connection.session
    client = Client(given.get("ADDR", was.client.ip), int(given.get("PORT") or 0), given.get("NAME", ""))
    await connection.renew(client, given.get("DESTADDR", was.local_ip))
    session = connection.session
    session.user = given.get("LOGIN", "")
    reply = await connection.greet()
    session.helo = given.get("HELO", "") if not reply.refused else ""
    return reply


def _attributes(argument: str) -> dict[str, str]:
    """Read `NAME=value ...`. Raises Refused."""
    found: dict[str, str] = {}
    for word in argument.split():
        name, equals, value = word.partition("=")
        name = name.upper()
        if not equals or name not in ATTRIBUTES:
            raise Refused(replies.UNKNOWN_PARAMETER, "syntax")
        found[name] = "" if value.upper() in _UNKNOWN else _value(name, _xtext(value))
    return found


def _value(name: str, value: str) -> str:
    """Check a value. Raises Refused."""
    if name in ("ADDR", "DESTADDR"):
        try:
            return str(ipaddress.ip_address(re.sub("(?i)^ipv6:", "", value)))
        except ValueError:
            raise Refused(replies.BAD_PARAMETER, "syntax") from None
    if name in ("PORT", "DESTPORT") and not re.fullmatch("[0-9]{1,5}", value):
        raise Refused(replies.BAD_PARAMETER, "syntax")
    return value


def _xtext(value: str) -> str:
    """Undo RFC 3461 section 4. Raises Refused."""
    text = re.sub(r"\+([0-9A-F]{2})", lambda hit: chr(int(hit[1], 16)), value)
    if not text.isprintable():
        raise Refused(replies.BAD_PARAMETER, "syntax")
    return text
