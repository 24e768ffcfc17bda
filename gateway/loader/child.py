"""The process of a plugin with `isolation: process`: `python -m gateway.loader.child DESCRIPTOR`.

It loads one plugin by its path, with its settings, and does what the gateway asks over the link: nothing
but JSON crosses. It ends with the link, and with the gateway.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gateway.counters import Counters
from gateway.errors import IsolationError, PluginError
from gateway.isolation.values import Edits, pack, unpack
from gateway.link import Link
from gateway.loader.build import Loader
from gateway.loader.steps import calls_of
from gateway.message import Message
from gateway.plugin import Services
from gateway.services import Clock, Dns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.events import Event

#: A plugin may take so many bytes beyond what its process has when it is loaded.
ROOM = 512 * 1024 * 1024
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
#: How it ends when memory ran out: what leaks is freed, and the gateway starts it again.
_OUT_OF_MEMORY = 70


class Child:
    """One plugin, asked over a link."""

    def __init__(self) -> None:
        self.link: Link
        self._stem = ""
        self._calls: dict[str, Callable[..., Any]] = {}
        self._tasks: dict[int, asyncio.Task[Any]] = {}

    async def serve(self, one: socket.socket) -> None:
        """Answer until the gateway hangs up."""
        calls: dict[str, Callable[..., Any]] = {"open": self._open, "ask": self._ask, "leave": self._leave}
        self.link = await Link.open(one, calls)
        await self.link.lost.wait()

    def _open(self, found: str) -> None:
        """Load the plugin. Raises PluginError."""
        one, tree, site = pickle.loads(base64.b64decode(found))  # noqa: S301 - the gateway wrote it
        clock = Clock()
        services = Services(clock, Dns(), _FarCounters(self, clock))
        plugin = Loader(services, self.emit, self._logger).load(one, tree, site)
        if plugin is None:
            raise PluginError("it is not enabled")
        plugin.instance.join(_FarChain(self))  # type: ignore[arg-type]
        self._stem, self._calls = one.stem, calls_of(plugin, tree)
        _bound_memory()

    async def _ask(self, number: int, stage: str, args: list[Any]) -> dict[str, Any]:
        task = asyncio.current_task()
        if task is not None and number:
            self._tasks[number] = task
        try:
            return await self._answer(stage, args)
        except asyncio.CancelledError:
            return {"error": "CancelledError()", "traceback": traceback.format_exc()}
        except MemoryError as error:
            asyncio.get_running_loop().call_later(0.05, os._exit, _OUT_OF_MEMORY)
            return {"error": repr(error), "traceback": "".join(traceback.format_exception(error, limit=-3))}
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin raises is its answer
            return {"error": repr(error), "traceback": "".join(traceback.format_exception(error))}
        finally:
            self._tasks.pop(number, None)

    async def _answer(self, stage: str, args: list[Any]) -> dict[str, Any]:
        given = [unpack(one) for one in args]
        call = self._calls.get(stage)
        said: Any = call(*given) if call is not None else None
        if hasattr(said, "__await__"):
            said = await said
        answer: dict[str, Any] = {"edits": Edits.between(self._stem, given, args).patch}
        same = [number for number, one in enumerate(given) if one is said and isinstance(said, Message)]
        return answer | ({"same": same[0]} if same else {"value": pack(said, self._stem)})

    def _leave(self, number: int) -> None:
        """Nobody waits for this call any more."""
        if number in self._tasks:
            self._tasks[number].cancel()

    def emit(self, event: Event) -> None:
        """Hand an event to the gateway."""
        self.link.tell("emit", event=pack(event))

    def _logger(self, stem: str) -> Any:
        del stem

        def send(_: Any, level: str, said: Any) -> Any:
            text = str(said.pop("event"))
            details = {
                key: one if isinstance(one, str | int | float) else repr(one) for key, one in said.items()
            }
            self.link.tell("log", level=level, text=text, details=details)
            raise structlog.DropEvent

        return structlog.wrap_logger(
            None, [structlog.processors.format_exc_info, send], structlog.make_filtering_bound_logger(20)
        )

    async def far(self, of: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Have the gateway do something. Raises IsolationError with what it raised."""
        given = [pack(one, self._stem) for one in args]
        said = await self.link.call("call", of=of, name=name, args=given, kwargs=kwargs)
        if "error" in said:
            raise IsolationError(said["error"])
        return unpack(said["value"])


class _FarCounters(Counters):
    """The gateway's counters, over the link."""

    def __init__(self, child: Child, clock: Clock) -> None:
        super().__init__(clock)
        self._child = child

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattribute__(name)
        child: Child = super().__getattribute__("_child")
        return lambda *args, **kwargs: child.far("counters", name, args, kwargs)


class _FarChain:
    """The gateway's chain, over the link."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.emit = child.emit

    def ask(self, hook: Any, *args: Any) -> Awaitable[Any]:
        """Ask a stage."""
        return self._child.far("chain", "ask", (hook.spec.name, *args), {})

    def ask_plugin(self, plugin: str, hook: Any, *args: Any) -> Awaitable[Any]:
        """Ask one plugin."""
        return self._child.far("chain", "ask_plugin", (plugin, hook.spec.name, *args), {})

    def transform(self, hook: Any, *args: Any) -> Awaitable[Any]:
        """Pass something through a stage."""
        return self._child.far("chain", "transform", (hook.spec.name, *args), {})


def _bound_memory() -> None:
    """Let an allocation without measure fail here, before the machine feels it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))


def main() -> None:
    """Serve the descriptor that is named on the command line."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    asyncio.run(Child().serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
