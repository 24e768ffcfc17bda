"""The child that has become an account: `python -I -m gateway.partition.delivering DESCRIPTOR PLAN`.

The agent has started it, and hands on to it what workers ask for this account. Who the account is, and where
its home, the agent says; the home counts where only root and the account can put another in its place. The
plugin that delivers is loaded from files that only root can change, with the settings that the agent knows;
nothing of the worker's says what runs. It ends when the agent hangs up and nothing is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import sys
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.accounts.ownership import refuse_changeable
from gateway.chain import Answer
from gateway.counters import Counters
from gateway.envelope import Account
from gateway.errand import LONGEST_REQUEST, Way, answer_of, read_request
from gateway.errors import AgentError, GatewayError
from gateway.hookspecs import Stages
from gateway.loader.build import Loader
from gateway.loader.find import Found
from gateway.loader.steps import calls_of
from gateway.message import BLOCK, FileBody
from gateway.plugin import Services, Site
from gateway.services import Clock, Dns
from gateway.settings.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.envelope import Delivery

#: What a thread takes of the memory that the account may have; without it 8 MiB, though it uses little.
_STACK = 1024 * 1024
#: The account as the request has it: with the dash and the extension of its recipient.
_account: ContextVar[Account] = ContextVar("account")


class Child:
    """Does what comes over one way, many requests at a time."""

    def __init__(self, way: socket.socket, plan: Mapping[str, Any]) -> None:
        self._way = way
        self._plan = plan
        known = plan["account"]
        self._account = Account(known["user"], known["uid"], known["gid"], known["home"])
        self._ways = [Way(*one) for one in known["ways"]]
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
        *given, reply = files
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for one in given:
                stack.callback(os.close, one)
            way = _socket(reply)
            reader, writer = await asyncio.open_unix_connection(sock=way)
            work = asyncio.ensure_future(self._done(given))
            gone = asyncio.ensure_future(reader.read())
            stack.callback(gone.cancel)
            stack.callback(writer.close)
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                writer.write(json.dumps(work.result()).encode())
                await writer.drain()
            else:
                work.cancel()
                await asyncio.wait([work])

    async def _done(self, given: list[int]) -> dict[str, Any]:
        try:
            return await self._do(given)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the worker defers, and the event says why
            return {"error": str(error) or repr(error)}

    async def _do(self, given: list[int]) -> dict[str, Any]:
        if not given:
            raise AgentError("there is no request")
        errand = read_request(_content(given[0]), self._account, self._ways)
        refuse_changeable(self._account.home, self._account.uid)
        _account.set(errand.account)
        call = self._load(errand.plugin).get(errand.stage)
        if call is None:
            raise AgentError("the plugin does not answer that stage")
        with contextlib.ExitStack() as stack:
            if errand.apart:
                _give_body(errand.subject, given[1], stack)
            said = call(errand.subject)
            if hasattr(said, "__await__"):
                said = await said
            if errand.stage == "exists":
                return {"value": said}
            return answer_of(said, errand.subject.entry.message)

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
            loader = Loader(Services(clock, Dns(), Counters(clock)), lambda _: None, _silent)
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


def _socket(number: int) -> socket.socket:
    """Take over an open file as a socket. Raises OSError for what is none, and closes it."""
    try:
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)
        raise


def _content(source: int) -> bytes:
    """Read a request. Raises AgentError for what is no file of bounded size."""
    size = _size(source)
    if size > LONGEST_REQUEST:
        raise AgentError("the request is too long")
    return os.pread(source, size, 0)


def _give_body(delivery: Delivery, source: int, stack: contextlib.ExitStack) -> None:
    """Put the body that came as an open file where the account can read it: it may not open the queue's."""
    copy = os.memfd_create("body")
    stack.callback(os.close, copy)
    size, whole = 0, _size(source)
    while block := os.pread(source, min(BLOCK, whole - size), size):
        os.write(copy, block)
        size += len(block)
    delivery.entry.message.body = FileBody(Path(f"/proc/self/fd/{copy}"), size)


def _size(source: int) -> int:
    """Give the size of a file. Raises AgentError for a pipe or a device, which may have no end."""
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        raise AgentError("what was handed on is no file")
    return status.st_size


def _refuse_unsafe(path: Path) -> None:
    """Refuse code that others than root could change. Raises AgentError."""
    for one in (path, *(path.parent.rglob("*") if path.name == "__init__.py" else ())):
        refuse_changeable(one)


class _Silent:
    """A logger that says nothing: this process has no journal, and what it does not import starts sooner."""

    def __getattr__(self, name: str) -> Callable[..., _Silent]:
        return lambda *_, **__: self


def _silent(stem: str) -> Any:
    """Give the logger of a plugin."""
    del stem
    return _Silent()


def main() -> None:
    """Serve the descriptor that is named on the command line."""
    threading.stack_size(_STACK)
    way = socket.socket(fileno=int(sys.argv[1]))
    asyncio.run(Child(way, json.loads(sys.argv[2])).serve())


if __name__ == "__main__":
    with contextlib.suppress(GatewayError):
        main()
