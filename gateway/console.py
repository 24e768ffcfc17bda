"""The control socket: how commands talk to the running gateway. One JSON object per line, both ways.

A request is `{"call": name, ...arguments}`; the answers are `{"row": {...}}` any number of times, then
`{"done": true}` or `{"error": text}`. Who asks is known by the kernel (SO_PEERCRED), not by what is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING, Any

from gateway.errors import ControlError, GatewayError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    #: Finds the call of a name: it takes `actor` and the request's arguments. Raises ControlError.
    Find = Callable[[str], Callable[..., AsyncIterator[dict[str, Any]]]]

SOCKET = "control"
#: Its members may ask, besides the gateway's user and group.
GROUP = "mailward-admin"
_LONGEST_REQUEST = 1024 * 1024
_TIMEOUT = 60.0
_CREDENTIALS = struct.Struct("3i")


def call(state: Path, name: str, /, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Ask the gateway whose state is here; gives the rows of its answer.

    Raises ControlError when none runs here, or with what it said against the request.
    """
    path = state / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_TIMEOUT)
        try:
            link.connect(str(path))
        except PermissionError as error:
            raise ControlError(
                f"you may not ask the gateway at {path}: be its user, in its group, or in {GROUP}"
            ) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise ControlError(
                f"no gateway answers at {path} ({why}): start one with `mailward run`"
            ) from error
        link.sendall(json.dumps({"call": name, **arguments}).encode() + b"\n")
        with link.makefile("rb") as answers:
            for line in answers:
                answer = json.loads(line)
                if "error" in answer:
                    raise ControlError(answer["error"])
                if "done" in answer:
                    return
                yield answer["row"]
    raise ControlError("the gateway ended before it had answered")


def running(state: Path) -> bool:
    """Whether a gateway answers here; one that may not be asked counts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(str(state / SOCKET))
        except PermissionError:
            return True
        except OSError:
            return False
    return True


class Console:
    """Serves the control socket of a gateway, of one worker or of many."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._path: Path | None = None
        self._server: asyncio.Server | None = None

    async def start(self, state: Path) -> None:
        """Open the socket, for our user and group only, or for GROUP where we are in such a group.

        Who calls this has the state for himself: what is there of the socket is left over.
        """
        path = self._path = state / SOCKET
        path.unlink(missing_ok=True)
        before = os.umask(0o117)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(path), limit=_LONGEST_REQUEST)
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)

    async def stop(self) -> None:
        """Close the socket, and remove it while the state is still ours."""
        if self._server is not None and self._path is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT)
            answer = self._answer(line, _actor(writer))
            async with contextlib.aclosing(answer) as rows:  # type: ignore[type-var] # it is a generator
                async for row in rows:
                    writer.write(json.dumps({"row": row}).encode() + b"\n")
                    await writer.drain()
            writer.write(b'{"done": true}\n')
        except GatewayError as error:
            writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            writer.write(json.dumps({"error": f"not understood: {error!r}"}).encode() + b"\n")
        except OSError:
            pass
        finally:
            writer.close()

    def _answer(self, line: bytes, actor: str) -> AsyncIterator[dict[str, Any]]:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ControlError("not understood: a request is an object")
        name = request.pop("call")
        return self._find(str(name))(**{**request, "actor": actor})


def _actor(writer: asyncio.StreamWriter) -> str:
    """Name the user at the other end of a Unix socket."""
    link = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
