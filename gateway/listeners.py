"""Opens the sockets of listeners. A port that is taken is an error before anything is started.

Of several workers each has sockets of its own for a TCP address (SO_REUSEPORT): the kernel shares out the
connections. Sockets with a path, and those that systemd has opened (LISTEN_FDS), all workers share.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gateway.endpoint import BACKLOG
from gateway.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.endpoint import Endpoint

    #: The sockets of one worker.
    Sockets = dict[Endpoint, list[socket.socket]]

_NO_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


class Wanted(Protocol):
    """What is opened: a listener of the settings, or what an agent knows of one."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def address(self) -> Endpoint:
        """Where."""


def open_sockets(listeners: Sequence[Wanted]) -> Sockets:
    """Bind and listen at every address. Raises ListenError, and then leaves none open."""
    return share_out(listeners, 1)[0]


def share_out(listeners: Sequence[Wanted], workers: int) -> list[Sockets]:
    """Bind and listen at every address, for each of so many workers.

    Raises ListenError, and then leaves none open.
    """
    shares: list[Sockets] = [{} for _ in range(workers)]
    try:
        for listener in listeners:
            for share, sockets in zip(shares, _bind(listener, workers), strict=True):
                share[listener.address] = sockets
    except ListenError:
        for share in shares:
            close_sockets(share)
        raise
    return shares


def close_sockets(opened: Sockets, *, paths: bool = True) -> None:
    """Close what was opened; with `paths`, nobody else serves those that have one."""
    for endpoint, sockets in opened.items():
        for one in sockets:
            one.close()
        if paths:
            remove_path(endpoint)


def remove_path(endpoint: Endpoint) -> None:
    """Remove a socket that we have bound; where we may not, it stays until one that may binds there."""
    given = _activated(endpoint)
    for one in given:
        one.close()
    if endpoint.path and not given:
        with contextlib.suppress(OSError):
            _unlink(endpoint.path)


def _bind(listener: Wanted, workers: int) -> list[list[socket.socket]]:
    """Open the sockets of one listener, for each worker: two for `*`, one a family. Raises ListenError."""
    try:
        shared = _activated(listener.address)
        if listener.address.path and not shared:
            shared = [_unix(listener.address.path)]
        if shared:
            return [[one.dup() for one in shared] for _ in range(workers - 1)] + [shared]
        first = _each_family(listener.address)
        # The port is ours by now: the others join in, at the one that was found where any was wanted.
        names = [(one.family, one.getsockname()) for one in first]
        return [first, *([_tcp(*name) for name in names] for _ in range(workers - 1))]
    except OSError as error:
        raise ListenError(
            f"listener {listener.name}: cannot listen at {listener.address}: "
            f"{_hint(error, listener.address.path)}"
        ) from error


def _activated(endpoint: Endpoint) -> list[socket.socket]:
    """Give the sockets that systemd has opened for us at an address (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    found = [socket.socket(fileno=os.dup(3 + n)) for n in range(int(os.environ.get("LISTEN_FDS", "0")))]
    ours = [one for one in found if _is_at(one, endpoint)]
    for one in found:
        one.setblocking(False)
        if one not in ours:
            one.close()
    return ours


def _is_at(one: socket.socket, endpoint: Endpoint) -> bool:
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        return bool(endpoint.path) and name == endpoint.path
    anywhere = endpoint.host == "*" and name[0] in ("0.0.0.0", "::")
    return not endpoint.path and name[1] == endpoint.port and (anywhere or name[0] == endpoint.host)


def _each_family(endpoint: Endpoint) -> list[socket.socket]:
    if endpoint.host == "*":
        return _both_families(endpoint.port)
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    _refuse_taken(family, address)
    return [_tcp(family, address)]


def _both_families(port: int) -> list[socket.socket]:
    """Listen at every address. A machine without IPv6 (or without IPv4) has the other."""
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in ((socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port))):
        try:
            _refuse_taken(family, address)
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


def _refuse_taken(family: int, address: tuple[Any, ...]) -> None:
    """Try an address alone: SO_REUSEPORT by itself would join another gateway of our user. Raises OSError."""
    _tcp(family, address, together=False).close()


def _tcp(family: int, address: tuple[Any, ...], *, together: bool = True) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(one.close)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, together)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
        if together:
            one.listen(BACKLOG)
        undo.pop_all()
    return one


def _unix(path: str) -> socket.socket:
    """Listen at a path, for all who can reach it: whose folder it is in decides who that is."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(one.close)
        remove_stale(path)
        one.setblocking(False)
        # A chmod behind the bind could meet a link that another has put there meanwhile.
        before = os.umask(0o111)
        try:
            one.bind(path)
        finally:
            os.umask(before)
        one.listen(BACKLOG)
        undo.pop_all()
    return one


def remove_stale(path: str) -> None:
    """Remove a socket that nobody serves any more; leave a live one, so that bind says it is taken."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _unlink(path)
        except OSError:
            return


def _unlink(path: str) -> None:
    """Remove a socket, and nothing else: a file that is there by mistake answers as a dead socket does."""
    if _is_socket(path):
        Path(path).unlink()


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _hint(error: OSError, path: str) -> str:
    said = error.strerror or str(error)
    if path:
        return _hint_at_path(error, path, said)
    if error.errno == errno.EADDRINUSE:
        return f"{said}: stop what serves it (ss -ltnp shows it), or change listeners.address"
    if error.errno == errno.EACCES:
        return f"{said}: ports below 1024 need root"
    if error.errno in _NO_FAMILY or isinstance(error, socket.gaierror):
        return f"{said}: this machine does not have that address; change listeners.address"
    return said


def _hint_at_path(error: OSError, path: str, said: str) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{said}: {Path(path).parent} must be writable by who starts the gateway (uid {os.geteuid()})"
    if error.errno != errno.EADDRINUSE:
        return said
    if not _is_socket(path):
        return f"{said}: {path} is a file and no socket: change listeners.address"
    return f"{said}: stop what serves it (ss -lxp shows it), or change listeners.address"
