"""One working process of the gateway: its chain, its queue, its listeners, its dispatcher."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway import events, journal, milter, smtp
from gateway.answering import Answering
from gateway.counters import Counters
from gateway.envelope import first_id
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.faultpoint import point
from gateway.hookspecs import Stages
from gateway.journal import Journal
from gateway.listeners import bind, close_sockets, open_sockets
from gateway.loader import Loader
from gateway.log import Log
from gateway.plugin import Services, Site
from gateway.queue import Dispatcher, Filter
from gateway.queue.birth import accepted
from gateway.reception import Reception
from gateway.services import Clock, Dns
from gateway.settings import Settings
from gateway.settings.tree import Tree

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from gateway.loader import Generation
    from gateway.queue import Queue
    from gateway.settings import Listener
    from gateway.settings.units import Endpoint

#: Deliveries and commands under way get this many seconds at a stop; then they are tried again later.
GRACE = 30.0
#: Entries younger than this at the journal's end are looked up there at start.
_RECOVERY_WINDOW = 600.0
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Configuration:
    """One reading of conf.d: the tree, and the core sections of it."""

    folder: Path
    tree: Tree
    settings: Settings

    @classmethod
    def load(cls, folder: Path, base: Path | None = None) -> Configuration:
        """Read conf.d; `base` is where relative paths start. Raises ConfigError."""
        tree = Tree.load(folder, base)
        return cls(folder, tree, Settings.of(tree))

    @property
    def site(self) -> Site:
        """What plugins may know."""
        gateway = self.settings.gateway
        return Site(
            gateway.hostname, gateway.postmaster, gateway.state, self.tree.base, self.settings.queue.lifetime
        )


class Worker:
    """A whole gateway in this process. Start it, reload it, stop it."""

    def __init__(
        self,
        configuration: Configuration,
        sockets: dict[Endpoint, list[socket.socket]] | None = None,
        services: Services | None = None,
    ) -> None:
        self.configuration = configuration
        self.started = time.time()
        self._sockets = sockets
        clock = services.clock if services else Clock()
        self.services = services or Services(clock, Dns(), Counters(clock))
        self._stack = AsyncExitStack()
        self._servers: dict[Endpoint, tuple[smtp.Server | milter.Server, list[asyncio.Server]]] = {}
        self._retired: list[Generation] = []
        self._reloading = asyncio.Lock()
        self.generation: Generation
        self.queue: Queue
        self.reception: Reception
        self.dispatcher: Dispatcher
        self.journal: Journal
        self.log: Log
        self._loader: Loader

    @property
    def settings(self) -> Settings:
        """The core settings in use."""
        return self.configuration.settings

    async def start(self) -> None:
        """Start all or nothing. Raises ConfigError, ListenError, QueueError, JournalError."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self, reason: str = "stopped") -> None:
        """End gently: no new mail, commands and deliveries under way finish, within GRACE."""
        for server, listening in self._servers.values():
            for one in listening:
                one.close()
            server.closing = True
        await self._dismiss()
        await self.reception.drain()
        self.journal.emit(events.GatewayStopped(reason=reason, seconds=round(time.time() - self.started, 3)))
        await self._stack.aclose()

    async def _dismiss(self) -> None:
        """Let commands under way come to their reply; who takes longer than GRACE is cut off, unanswered."""
        try:
            async with asyncio.timeout(GRACE):
                await asyncio.gather(*(server.close_gently() for server, _ in self._servers.values()))
        except TimeoutError:
            for server, _ in self._servers.values():
                server.abort()

    async def reload(self, actor: str = "") -> None:
        """Use a new reading of conf.d, all of it or none. Raises GatewayError; then the old one runs on."""
        async with self._reloading:
            try:
                await self._reload()
            except (ConfigError, GatewayError) as error:
                problems = tuple(str(error).splitlines())
                folder = str(self.configuration.folder)
                self.journal.emit(events.ConfigRejected(folder=folder, problems=problems, actor=actor))
                raise
            self._tell_loaded(actor)
        self._retire()

    async def _start(self) -> None:
        settings = self.settings
        sockets = open_sockets(settings.listeners) if self._sockets is None else self._sockets
        self._stack.callback(lambda: close_sockets(sockets))
        _make_state(settings.gateway.state)
        self._open_journal()
        self._loader = Loader(self.services, self.journal.emit, self.log.plugin)
        self.generation = self._build(self.configuration)
        await self._begin(self.generation, None)
        self._stack.push_async_callback(self._end)
        self.queue = await self._open_queue()
        await self.queue.open()
        self._stack.push_async_callback(self.queue.close)
        self._make_reception()
        point("start.recover")
        await self._recover()
        point("start.recovered")
        await self._start_dispatcher()
        point("start.serve")
        for listener in settings.listeners:
            await self._serve(listener.address, sockets[listener.address])
        self._tell_started()

    def _open_journal(self) -> None:
        settings = self.settings
        self.log = Log(settings.journal.outputs, lambda: self.settings.queue.concurrency)
        self.journal = Journal(
            settings.gateway.state / "journal",
            settings.gateway.hostname,
            now=self.services.clock.time,
            keep=settings.journal.keep,
            max_size=settings.journal.max_size,
            outputs=self.log.outputs,
        )
        self.journal.open()
        self._stack.callback(self.journal.close)
        self.log.start(self.journal.emit)
        self._stack.callback(self.log.close)

    def _build(self, configuration: Configuration, before: Generation | None = None) -> Generation:
        folders = configuration.settings.plugins.folders
        return self._loader.build(configuration.tree, configuration.site, folders, Settings.names(), before)

    async def _begin(self, generation: Generation, before: Generation | None) -> None:
        """Run `startup` of the new instances. Raises ConfigError, and then has shut down those it started."""
        begun: list[str] = []
        for stem, plugin in generation.plugins.items():
            if plugin.kept:
                continue
            begun.append(stem)
            try:
                await generation.chain.life(stem, Stages.startup)
            except Exception as error:
                for one in begun:
                    await generation.chain.life(one, Stages.shutdown, quiet=True)
                self._loader.retire(generation, before)
                if isinstance(error, GatewayError):
                    raise
                place = plugin.found.path
                raise ConfigError(
                    Problem(f"{place}: startup failed: {type(error).__name__}: {error}")
                ) from error

    async def _end(self) -> None:
        for stem in self.generation.plugins:
            await self.generation.chain.life(stem, Stages.shutdown, quiet=True)
        await self.generation.chain.drain()

    async def _open_queue(self) -> Queue:
        opened = self.generation.order["open_queue"]
        if len(opened) > 1:
            both = " and ".join(opened)
            raise ConfigError(
                f"two plugins open the queue, {both}: write `enabled: false` into the section of one"
            )
        answer = await self.generation.chain.ask(Stages.open_queue)
        if answer.value is None:
            raise ConfigError(f"{opened[0]} opened no queue; the journal's plugin.failed says why")
        return answer.value

    def _make_reception(self) -> None:
        self.reception = Reception(
            lambda: self.generation.chain,
            self.queue,
            self.services,
            lambda: self.settings.limits,
            lambda: self.dispatcher.wake(),  # noqa: PLW0108 - the dispatcher is made after the reception
        )

    async def _recover(self) -> None:
        """Emit what the queue holds and the journal lacks: the process was killed between the two."""
        since = self.journal.ended - _RECOVERY_WINDOW
        known = await asyncio.to_thread(journal.accepted, self.settings.gateway.state / "journal", since)
        after = first_id(since)
        while page := await self.queue.list(Filter(), _PAGE, after):
            for entry in page:
                if entry.birth >= since and entry.id not in known:
                    self.journal.emit(accepted(entry, recovered=True))
            after = page[-1].id

    async def _start_dispatcher(self) -> None:
        self.dispatcher = Dispatcher(
            self.queue,
            lambda: self.generation.chain,
            self.journal,
            self.services,
            lambda: self.settings.queue,
            self.reception.admit,
            self.configuration.site,
        )
        await self.dispatcher.start()
        self._stack.push_async_callback(self.dispatcher.stop, GRACE)

    async def _serve(self, endpoint: Endpoint, sockets: list[socket.socket]) -> None:
        listener = next(one for one in self.settings.listeners if one.address == endpoint)
        loop = asyncio.get_running_loop()
        server = self._server(listener)
        opened: list[asyncio.Server] = []
        for one in sockets:
            make: Any = loop.create_unix_server if endpoint.path else loop.create_server
            opened.append(await make(server, sock=one))
        self._servers[endpoint] = server, opened

    def _server(self, listener: Listener) -> smtp.Server | milter.Server:
        """Make what speaks a listener's protocol."""
        limits, loop = self.settings.limits, asyncio.get_running_loop()
        if listener.protocol == "milter":
            return milter.Server(Answering(self.reception), limits, listener.name, loop)
        greeting = self.settings.gateway.greeting
        return smtp.Server(self.reception, limits, greeting, listener, loop)

    async def _reload(self) -> None:
        old = self.configuration
        new = Configuration.load(old.folder, old.tree.base)
        if new.settings.gateway.state != old.settings.gateway.state:
            raise ConfigError(
                Problem("gateway.state: a change needs a restart", new.tree.place("gateway", "state"))
            )
        generation = self._build(new, self.generation)
        await self._begin(generation, self.generation)
        added = [one for one in new.settings.listeners if one.address not in self._servers]
        opened: dict[Endpoint, list[socket.socket]] = {}
        try:
            for listener in added:
                opened[listener.address] = bind(listener)
        except GatewayError:
            close_sockets(opened)
            for stem, plugin in generation.plugins.items():
                if not plugin.kept:
                    await generation.chain.life(stem, Stages.shutdown, quiet=True)
            self._join_again()
            raise
        self._retired.append(self.generation)
        self.configuration, self.generation = new, generation
        await self._switch_listeners(opened)
        self.dispatcher.wake()

    def _join_again(self) -> None:
        """Give kept instances their old chain back after a reload that was refused."""
        for plugin in self.generation.plugins.values():
            plugin.instance.join(self.generation.chain)

    async def _switch_listeners(self, opened: dict[Endpoint, list[socket.socket]]) -> None:
        wanted = {listener.address for listener in self.settings.listeners}
        for endpoint in self._servers.keys() - wanted:
            _, listening = self._servers.pop(endpoint)
            for one in listening:
                one.close()
        for server, _ in self._servers.values():
            server.limits = self.settings.limits
            if isinstance(server, smtp.Server):
                server.greeting = self.settings.gateway.greeting
        for endpoint, sockets in opened.items():
            await self._serve(endpoint, sockets)

    def _retire(self) -> None:
        """Drop the generations that no session uses any more."""
        for old in [one for one in self._retired if not self.reception.sessions(one.chain)]:
            self._retired.remove(old)
            self._loader.retire(old, self.generation)

    def _tell_started(self) -> None:
        self._tell_loaded("")
        listeners = tuple(f"{one.name} {one.protocol} {one.address}" for one in self.settings.listeners)
        event = events.GatewayStarted(version=version("mailward"), listeners=listeners, pid=os.getpid())
        self.generation.chain.emit(event)

    def _tell_loaded(self, actor: str) -> None:
        generation = self.generation
        for stem, plugin in generation.plugins.items():
            if plugin.kept:
                continue
            found = plugin.found
            generation.chain.emit(events.PluginLoaded(plugin=stem, file=str(found.path), source=found.origin))
            if found.replaces:
                event = events.PluginReplaced(plugin=stem, file=str(found.path), replaced=str(found.replaces))
                generation.chain.emit(event)
        generation.chain.emit(
            events.ConfigLoaded(
                folder=str(self.configuration.folder),
                plugins=tuple(generation.plugins),
                generation=generation.number,
                actor=actor,
            )
        )


def _make_state(folder: Path) -> None:
    """Make the state folder, for us alone. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(f"gateway.state: cannot write {folder}: {error.strerror}") from error
