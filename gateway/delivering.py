"""The child that has become an account: `python -I -m gateway.delivering DESCRIPTOR PLAN`.

The agent has started it, and hands on to it what workers ask for this account. The plugin that delivers is
loaded from files that only root can change, with the settings that the agent knows; nothing of the worker's
says what runs. It ends when the agent hangs up and nothing is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway.agency import LONGEST, answer_of
from gateway.chain import Answer
from gateway.counters import Counters
from gateway.errors import AgentError, GatewayError
from gateway.hookspecs import Stages
from gateway.isolation.values import unpack
from gateway.loader.build import Loader
from gateway.loader.find import Found
from gateway.loader.steps import calls_of
from gateway.message import BLOCK, FileBody
from gateway.plugin import Services, Site
from gateway.services import Clock, Dns
from gateway.settings.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.envelope import Account, Delivery

#: The account as the request has it: with the dash and the extension of its recipient.
_account: ContextVar[Account] = ContextVar("account")


class Child:
    """Does what comes over one way, many requests at a time."""

    def __init__(self, way: socket.socket, plan: Mapping[str, Any]) -> None:
        self._way = way
        self._plan = plan
        self._calls: dict[str, Mapping[str, Callable[..., Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the agent hangs up, and all that is under way has ended."""
        loop = asyncio.get_running_loop()
        self._way.setblocking(False)
        loop.add_reader(self._way, self._take)
        await self._ended.wait()
        loop.remove_reader(self._way)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _take(self) -> None:
        try:
            data, files, _, _ = socket.recv_fds(self._way, 4096, 3, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        if not data:
            self._ended.set()
            return
        task = asyncio.get_running_loop().create_task(self._answer(files))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, files: list[int]) -> None:
        """Answer one request; whoever hangs up wants it ended."""
        request, *body, reply = files
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=reply))
        work = asyncio.ensure_future(self._done(request, body))
        gone = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
                return
            writer.write(json.dumps(work.result()).encode())
            await writer.drain()
        except OSError:
            return
        finally:
            gone.cancel()
            for one in (request, *body):
                os.close(one)
            writer.close()

    async def _done(self, request: int, body: list[int]) -> dict[str, Any]:
        try:
            with os.fdopen(os.dup(request), "rb") as file:
                file.seek(0)
                asked = json.loads(file.read(LONGEST))
            return await self._do(asked, body)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the worker defers, and the event says why
            return {"error": str(error) or repr(error)}

    async def _do(self, asked: dict[str, Any], body: list[int]) -> dict[str, Any]:
        subject = unpack(asked["subject"])
        _account.set(unpack(asked["account"]))
        call = self._load(str(asked["plugin"])).get(str(asked["stage"]))
        if call is None:
            raise AgentError("the plugin does not answer that stage")
        with contextlib.ExitStack() as stack:
            if body:
                _give_body(subject, body[0], stack)
            said = call(subject)
            if hasattr(said, "__await__"):
                said = await said
            return {"value": said} if asked["stage"] == "exists" else answer_of(said, subject.entry.message)

    def _load(self, stem: str) -> Mapping[str, Callable[..., Any]]:
        """Load a plugin that the plan names. Raises GatewayError."""
        if stem not in self._calls:
            known = self._plan["plugins"][stem]
            path, site = Path(known["path"]), self._plan["site"]
            _refuse_unsafe(path)
            text = json.dumps({stem: known["section"]}, ensure_ascii=False)
            tree = Tree.parse({"conf.d": text}, Path(site["base"]))
            about = Site(site["hostname"], site["postmaster"], Path("/nonexistent"), tree.base, 0.0)
            clock = Clock()
            loader = Loader(Services(clock, Dns(), Counters(clock)), lambda _: None, _logger)
            plugin = loader.load(Found(stem, "bundled", path, ""), tree, about)
            if plugin is None:
                raise AgentError(f"{stem} is not enabled")
            plugin.instance.join(_Chain())  # type: ignore[arg-type]
            self._calls[stem] = calls_of(plugin, tree)
        return self._calls[stem]


class _Chain:
    """All that a plugin may ask here: who the account is."""

    async def ask(self, hook: Any, *_: Any) -> Answer[Any]:
        """Give the account."""
        if hook.spec.name != Stages.account.spec.name:  # type: ignore[attr-defined]
            raise AgentError(f"{hook.spec.name} cannot be asked by what delivers as an account")
        return Answer(_account.get())

    def emit(self, event: Any) -> None:
        """Events are the worker's."""


def _give_body(delivery: Delivery, source: int, stack: contextlib.ExitStack) -> None:
    """Put the body that came as an open file where the account can read it: it may not open the queue's."""
    copy = os.memfd_create("body")
    stack.callback(os.close, copy)
    size = 0
    while block := os.pread(source, BLOCK, size):
        os.write(copy, block)
        size += len(block)
    delivery.entry.message.body = FileBody(Path(f"/proc/self/fd/{copy}"), size)


def _refuse_unsafe(path: Path) -> None:
    """Refuse code that others than root could change. Raises AgentError."""
    inside = path.parent.rglob("*") if path.name == "__init__.py" else ()
    for one in (path, *path.parents, *inside):
        status = one.stat()
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if status.st_uid != 0 or (
            writable and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX)
        ):
            raise AgentError(f"{one}: it must belong to root, and nobody else may write it")


def _logger(stem: str) -> Any:
    """Give a logger that says nothing: this process has no journal."""
    del stem
    return structlog.wrap_logger(None, [_drop], structlog.make_filtering_bound_logger(50))


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


def main() -> None:
    """Serve the descriptor that is named on the command line."""
    way = socket.socket(fileno=int(sys.argv[1]))
    asyncio.run(Child(way, json.loads(sys.argv[2])).serve())


if __name__ == "__main__":
    with contextlib.suppress(GatewayError):
        main()
