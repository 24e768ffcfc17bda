"""The addresses of this host's interfaces, asked of the kernel (rtnetlink(7), as `ip address` does)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEW_ADDRESS, _GET_ADDRESS, _DUMP = 20, 22, 0x301
_DONE, _ERROR = 3, 2
_MESSAGE, _ATTRIBUTE = struct.Struct("=LHHLL"), struct.Struct("=HH")
#: Size of `struct ifaddrmsg`; attributes follow it.
_FIXED = 8
#: IFA_ADDRESS and IFA_LOCAL; they differ on point-to-point links.
_ADDRESSES = (1, 2)


def own_addresses() -> set[str]:
    """Give every address of every interface; only loopback when the kernel does not tell."""
    found = {"127.0.0.1", "::1"}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
            netlink.settimeout(1.0)
            netlink.sendto(_MESSAGE.pack(_MESSAGE.size + 1, _GET_ADDRESS, _DUMP, 1, 0) + b"\0", (0, 0))
            while True:
                data = netlink.recv(65536)
                kinds = set()
                for kind, body in _split(data):
                    kinds.add(kind)
                    if kind == _NEW_ADDRESS:
                        found.update(_addresses(body))
                if not kinds or kinds & {_DONE, _ERROR}:
                    return found
    except OSError:
        return found


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, *_ = _MESSAGE.unpack_from(data, at)
        yield kind, data[at + _MESSAGE.size : at + length]
        at += max((length + 3) & ~3, _MESSAGE.size)


def _addresses(body: bytes) -> Iterator[str]:
    at = _FIXED
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        value = body[at + _ATTRIBUTE.size : at + length]
        if kind in _ADDRESSES and len(value) in (4, 16):
            yield str(ipaddress.ip_address(value))
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
