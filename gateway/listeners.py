"""Opens the sockets of listeners. A port that is taken is an error before anything is started."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.settings import Listener
    from gateway.settings.units import Endpoint

_BACKLOG = 1024
_NO_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


def open_sockets(listeners: Sequence[Listener]) -> dict[Endpoint, list[socket.socket]]:
    """Bind and listen at every address. Raises ListenError, and then leaves none open."""
    opened: dict[Endpoint, list[socket.socket]] = {}
    try:
        for listener in listeners:
            opened[listener.address] = bind(listener)
    except ListenError:
        close_sockets(opened)
        raise
    return opened


def close_sockets(opened: dict[Endpoint, list[socket.socket]]) -> None:
    """Close what `open_sockets` opened."""
    for endpoint, sockets in opened.items():
        for one in sockets:
            one.close()
        if endpoint.path:
            Path(endpoint.path).unlink(missing_ok=True)


def bind(listener: Listener) -> list[socket.socket]:
    """Open the sockets of one listener: two for `*`, one a family. Raises ListenError."""
    try:
        if listener.address.path:
            return [_unix(listener.address.path)]
        if listener.address.host == "*":
            return _both_families(listener.address.port)
        found = socket.getaddrinfo(
            listener.address.host, listener.address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        return [_tcp(family, address)]
    except OSError as error:
        raise ListenError(
            f"listener {listener.name}: cannot listen at {listener.address}: {_hint(error)}"
        ) from error


def _both_families(port: int) -> list[socket.socket]:
    """Listen at every address. A machine without IPv6 (or without IPv4) has the other."""
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in ((socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port))):
        try:
            sockets.append(_tcp(family, address))
        except OSError as error:
            if error.errno not in _NO_FAMILY:
                for one in sockets:
                    one.close()
                raise
            failure = error
    if not sockets and failure:
        raise failure
    return sockets


def _tcp(family: int, address: tuple[Any, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(one.close)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
        one.listen(_BACKLOG)
        undo.pop_all()
    return one


def _unix(path: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(one.close)
        _remove_stale(path)
        one.setblocking(False)
        one.bind(path)
        one.listen(_BACKLOG)
        undo.pop_all()
    return one


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody serves any more; leave a live one, so that bind says it is taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError:
            return


def _hint(error: OSError) -> str:
    said = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return f"{said}: stop what serves it (ss -ltnp shows it), or change listeners.address"
    if error.errno == errno.EACCES:
        return f"{said}: ports below 1024 need root"
    if error.errno in _NO_FAMILY or isinstance(error, socket.gaierror):
        return f"{said}: this machine does not have that address; change listeners.address"
    return said
