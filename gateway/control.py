"""The control socket: how commands talk to the running gateway. One JSON object per line, both ways.

A request is `{"call": name, ...arguments}`; the answers are `{"row": {...}}` any number of times, then
`{"done": true}` or `{"error": text}`. Who asks is known by the kernel (SO_PEERCRED), not by what is said.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import struct
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.errors import ControlError, GatewayError
from gateway.journal import newest
from gateway.operations import Operations

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from gateway.loader import Generation
    from gateway.worker import Worker

SOCKET = "control"
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
                f"you may not ask the gateway at {path}: be its user, or in its group"
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


class Control:
    """Serves the control socket of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._server: asyncio.Server | None = None
        self._calls: dict[str, Callable[..., AsyncIterator[dict[str, Any]]]] = {
            "status": self._status,
            "reload": self._reload,
            "stages": self._stages,
        }

    async def start(self, state: Path) -> None:
        """Open the socket, for our user and group only."""
        path = state / SOCKET
        path.unlink(missing_ok=True)
        before = os.umask(0o117)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(path), limit=_LONGEST_REQUEST)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Close the socket."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), _TIMEOUT))
            async for row in self._call(request.pop("call"))(actor=_actor(writer), **request):
                writer.write(json.dumps({"row": row}).encode() + b"\n")
                await writer.drain()
            writer.write(b'{"done": true}\n')
        except GatewayError as error:
            writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        except (KeyError, TypeError, ValueError) as error:
            writer.write(json.dumps({"error": f"not understood: {error!r}"}).encode() + b"\n")
        except OSError:
            pass
        finally:
            writer.close()

    async def _status(self, actor: str) -> AsyncIterator[dict[str, Any]]:
        del actor
        worker = self._worker
        folder = worker.journal.folder
        yield {
            "version": version("mailward"),
            "pid": os.getpid(),
            "hostname": worker.settings.gateway.hostname,
            "seconds": round(time.time() - worker.started, 1),
            "configuration": str(worker.configuration.folder),
            "base": str(worker.configuration.tree.base),
            "generation": worker.generation.number,
            "listeners": [f"{one.name} {one.protocol} {one.address}" for one in worker.settings.listeners],
            "sessions": worker.reception.sessions(),
            "queue": [
                {"domain": s.domain, "state": s.state, "recipients": s.recipients, "oldest": s.oldest}
                for s in await worker.queue.stats()
            ],
            "journal": {"folder": str(folder), "full": worker.journal.full},
            "last_error": await asyncio.to_thread(newest, folder, ("error", "critical")),
        }

    async def _reload(self, actor: str) -> AsyncIterator[dict[str, Any]]:
        before = self._worker.generation
        await self._worker.reload(actor)
        yield {"generation": self._worker.generation.number, **_changes(before, self._worker.generation)}

    async def _stages(self, actor: str) -> AsyncIterator[dict[str, Any]]:
        del actor
        for stage, stems in self._worker.generation.order.items():
            plugins = [self._worker.generation.plugins[stem].found for stem in stems]
            yield {
                "stage": stage,
                "plugins": [{"stem": p.stem, "origin": p.origin, "file": str(p.path)} for p in plugins],
            }

    def _call(self, name: str) -> Callable[..., AsyncIterator[dict[str, Any]]]:
        if name in self._calls:
            return self._calls[name]
        worker = self._worker
        # Built per request: a reload changes the chain that the events go through.
        dispatcher = worker.dispatcher
        operations = Operations(
            worker.queue, worker.generation.chain.emit, dispatcher.wake, dispatcher.bounce, dispatcher.settle
        )
        return operations.calls[name]


def _changes(before: Generation, after: Generation) -> dict[str, list[str]]:
    """Say which plugins a reload has added, removed, or made anew since their file or settings changed."""
    old, new = before.plugins, after.plugins
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(stem for stem in new.keys() & old.keys() if not new[stem].kept),
    }


def _actor(writer: asyncio.StreamWriter) -> str:
    """Name the user at the other end of a Unix socket."""
    link = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
