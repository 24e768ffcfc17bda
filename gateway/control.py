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
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.errors import ControlError, GatewayError
from gateway.queue import Filter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from gateway.envelope import Entry
    from gateway.worker import Worker

SOCKET = "control"
_LONGEST_REQUEST = 1024 * 1024
_TIMEOUT = 60.0
_CREDENTIALS = struct.Struct("3i")


def call(state: Path, name: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Ask the gateway whose state is here; gives the rows of its answer.

    Raises ControlError when none runs here, or with what it said against the request.
    """
    path = state / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_TIMEOUT)
        try:
            link.connect(str(path))
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


class Control:
    """Serves the control socket of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._server: asyncio.Server | None = None
        self._calls: dict[str, Callable[..., AsyncIterator[dict[str, Any]]]] = {
            "status": self._status,
            "reload": self._reload,
            "stages": self._stages,
            "queue.list": self._list,
            "queue.show": self._show,
            "queue.stats": self._stats,
            "queue.retry": self._retry,
            "queue.hold": self._hold,
            "queue.release": self._release,
            "queue.delete": self._delete,
            "queue.bounce": self._bounce,
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
            async for row in self._calls[request.pop("call")](actor=_actor(writer), **request):
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
        yield {
            "pid": os.getpid(),
            "hostname": worker.settings.gateway.hostname,
            "seconds": round(time.time() - worker.started, 1),
            "configuration": str(worker.configuration.folder),
            "generation": worker.generation.number,
            "listeners": [f"{one.name} {one.protocol} {one.address}" for one in worker.settings.listeners],
            "sessions": worker.reception.sessions(),
            "queue": [
                {"domain": s.domain, "state": s.state, "recipients": s.recipients, "oldest": s.oldest}
                for s in await worker.queue.stats()
            ],
        }

    async def _reload(self, actor: str) -> AsyncIterator[dict[str, Any]]:
        await self._worker.reload(actor)
        yield {"generation": self._worker.generation.number, "plugins": list(self._worker.generation.plugins)}

    async def _stages(self, actor: str) -> AsyncIterator[dict[str, Any]]:
        del actor
        for stage, stems in self._worker.generation.order.items():
            plugins = [self._worker.generation.plugins[stem].found for stem in stems]
            yield {
                "stage": stage,
                "plugins": [{"stem": p.stem, "origin": p.origin, "file": str(p.path)} for p in plugins],
            }

    async def _list(
        self, actor: str, limit: int = 1000, after: str = "", **wanted: Any
    ) -> AsyncIterator[dict[str, Any]]:
        del actor
        for entry in await self._worker.queue.list(Filter(**wanted), limit, after):
            yield describe(entry)

    async def _show(self, actor: str, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        del actor
        for entry in await self._worker.queue.list(Filter(**wanted), 1):
            whole = await self._worker.queue.get(entry.id)
            if whole is not None:
                header = whole.message.header.decode("utf-8", "backslashreplace")
                yield {**describe(whole), "header": header}

    async def _stats(self, actor: str) -> AsyncIterator[dict[str, Any]]:
        del actor
        for one in await self._worker.queue.stats():
            yield {
                "domain": one.domain,
                "state": one.state,
                "recipients": one.recipients,
                "oldest": one.oldest,
            }

    async def _retry(self, actor: str, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        for entry in await self._worker.queue.retry(Filter(**wanted)):
            yield self._changed(entry, events.MessageRetried, actor)
        self._worker.dispatcher.wake()

    async def _hold(self, actor: str, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        for entry in await self._worker.queue.hold(Filter(**wanted)):
            yield self._changed(entry, events.MessageHeld, actor)

    async def _release(self, actor: str, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        for entry in await self._worker.queue.release(Filter(**wanted)):
            yield self._changed(entry, events.MessageReleased, actor)
        self._worker.dispatcher.wake()

    async def _delete(self, actor: str, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        for entry in await self._worker.queue.delete(Filter(**wanted)):
            yield self._changed(entry, events.MessageDeleted, actor)

    async def _bounce(self, actor: str, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        for entry in await self._worker.dispatcher.bounce(Filter(**wanted)):
            yield self._changed(entry, events.MessageBounced, actor)

    def _changed(self, entry: Entry, event: type[events.Event], actor: str) -> dict[str, Any]:
        self._worker.generation.chain.emit(event(message=entry.id, actor=actor))
        return describe(entry)


def describe(entry: Entry) -> dict[str, Any]:
    """Give an entry as `queue list --json` prints it."""
    return {
        "id": entry.id,
        "sender": _clean(entry.sender),
        "size": entry.size,
        "birth": entry.birth,
        "origin": entry.origin,
        "parent": entry.parent,
        "recipients": [
            {
                "address": _clean(one.recipient.address),
                "original": _clean(one.recipient.original),
                "state": one.state,
                "attempts": one.attempts,
                "due": one.due,
                "status": one.status,
                "report": _clean(one.report),
                "route": f"{one.route.plugin} {one.route.destination}".strip() if one.route else "",
            }
            for one in entry.recipients
        ],
    }


def _clean(text: str) -> str:
    """Make what came from outside printable: JSON takes no lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _actor(writer: asyncio.StreamWriter) -> str:
    """Name the user at the other end of a Unix socket."""
    link = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
