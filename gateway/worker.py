"""One working process of the gateway: its chain, its queue, its listeners, its dispatcher.

Alone it is a whole gateway, as in tests; as a Member of several it is told by the supervisor what to do.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from gateway import events, journal
from gateway.backups import Backups
from gateway.configuration import Configuration as Configuration  # noqa: PLC0414 - beside Worker it is looked for
from gateway.configuration import make_state
from gateway.counters import Counters, StandIn
from gateway.envelope import first_id
from gateway.errors import ConfigError, GatewayError, Problem, QueueError
from gateway.faultpoint import point
from gateway.hookspecs import Stages
from gateway.journal import Journal
from gateway.listeners import close_sockets, open_sockets
from gateway.loader import Loader
from gateway.log import Log
from gateway.plugin import Services
from gateway.queue import Dispatcher
from gateway.queue.birth import told
from gateway.queue.slots import slots_of
from gateway.reception import Reception
from gateway.services import Clock, Dns
from gateway.serving import Serving
from gateway.settings import Settings

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.endpoint import Endpoint
    from gateway.journal import Output
    from gateway.loader import Generation
    from gateway.queue import Queue
    from gateway.queue.slots import Slots

#: Seconds between two looks at whether a retired chain has sessions.
_LOOK = 1.0
#: Deliveries and commands under way get this many seconds at a stop; then they are tried again later.
GRACE = 30.0
#: Entries younger than this at the journal's end are looked up there at start.
_RECOVERY_WINDOW = 600.0
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Member:
    """The place of a worker among those of its gateway, and what it shares with them."""

    number: int
    count: int
    #: The slots of deliveries, by channel; None: this worker has its own.
    slots: Mapping[str, Slots] | None
    #: Where events go besides the journal.
    outputs: Sequence[Output]


class Worker:
    """A whole gateway in this process. Start it, reload it, stop it."""

    def __init__(
        self,
        configuration: Configuration,
        sockets: dict[Endpoint, list[socket.socket]] | None = None,
        services: Services | None = None,
        member: Member | None = None,
    ) -> None:
        self._member = member
        self._slots = (member and member.slots) or slots_of(lambda: self.settings.queue)
        self.number = member.number if member else 0
        self.configuration = configuration
        self.started = time.time()
        self._sockets = sockets
        clock = services.clock if services else Clock()
        given = services or Services(clock, Dns(), Counters(clock))
        self._counters = StandIn(given.counters)
        self.services = replace(given, counters=self._counters)
        self._serving = Serving(self.services, lambda: self.settings)
        self._stack = AsyncExitStack()
        #: Generations that sessions or deliveries still use, and what ends each when they are over.
        self._retired: dict[int, tuple[Generation, asyncio.Task[None]]] = {}
        self._prepared: tuple[Configuration, Generation] | None = None
        self._reloading = asyncio.Lock()
        #: Our queue, then what workers left that are no more; each has a dispatcher.
        self.queues: list[Queue] = []
        self.dispatchers: list[Dispatcher] = []
        self.generation: Generation
        self.queue: Queue
        self.reception: Reception
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
        self._serving.close()
        await asyncio.gather(self._serving.dismiss(GRACE), self._stop_dispatchers())
        await self.reception.drain()
        if self._member is None:
            seconds = round(time.time() - self.started, 3)
            self.journal.emit(events.GatewayStopped(reason=reason, seconds=seconds))
        await self._stack.aclose()

    async def reload(self, actor: str = "") -> None:
        """Use a new reading of conf.d, all of it or none. Raises GatewayError; then the old one runs on."""
        async with self._reloading:
            try:
                new = Configuration.load(self.configuration.folder, self.configuration.tree.base)
                new.follows(self.configuration)
                await self.prepare(new)
                opened = await self._open_added(new)
            except GatewayError as error:
                problems = tuple(str(error).splitlines())
                folder = str(self.configuration.folder)
                self.journal.emit(events.ConfigRejected(folder=folder, problems=problems, actor=actor))
                raise
            await self.switch(opened, actor)

    async def prepare(self, new: Configuration) -> None:
        """Make all that a configuration needs, beside the one that runs. Raises GatewayError."""
        await self.abandon()
        try:
            generation = await self._build(new, self.generation)
            await self._begin(generation, self.generation)
        except GatewayError:
            self._join_again()
            raise
        self._prepared = new, generation

    async def abandon(self) -> None:
        """Forget what was prepared."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        for stem, plugin in prepared[1].plugins.items():
            if not plugin.kept:
                await prepared[1].chain.life(stem, Stages.shutdown, quiet=True)
        self._loader.retire(prepared[1], self.generation)
        self._join_again()

    def _join_again(self) -> None:
        """Give kept instances their old chain back after a reload that was refused."""
        for plugin in self.generation.plugins.values():
            plugin.instance.join(self.generation.chain)

    async def switch(self, opened: dict[Endpoint, list[socket.socket]], actor: str = "") -> None:
        """Use what was prepared, and serve these sockets of listeners that are new."""
        assert self._prepared  # noqa: S101 - `prepare` has returned
        self._retire(self.generation)
        self.configuration, self.generation = self._prepared
        self._prepared = None
        await self._serving.switch(opened)
        for dispatcher in self.dispatchers:
            dispatcher.wake()
        self._tell_loaded(actor)

    async def _open_added(self, new: Configuration) -> dict[Endpoint, list[socket.socket]]:
        try:
            known = self._serving.addresses
            return open_sockets([one for one in new.settings.listeners if one.address not in known])
        except GatewayError:
            await self.abandon()
            raise

    async def _start(self) -> None:
        settings = self.settings
        sockets = open_sockets(settings.listeners) if self._sockets is None else self._sockets
        self._stack.callback(lambda: close_sockets(sockets, paths=self._member is None))
        make_state(settings.gateway.state)
        self._open_journal()
        self._loader = Loader(self.services, self.journal.emit, self.log.plugin)
        self.generation = await self._build(self.configuration)
        await self._begin(self.generation, None)
        self._stack.push_async_callback(self._end_all)
        self.queue = await self._open_queue()
        self._counters.target = self.queue.counters(self._counters.target)
        self._make_reception()
        await self._work(self.queue, self.journal.ended)
        for number, queue in self._left_behind():
            await self._work(queue, journal.ended(self.journal.folder / f"shard-{number}"))
        point("start.serve")
        for listener in settings.listeners:
            await self.serve(listener.address, sockets[listener.address])
        self._tell_started()
        if self.number == 0:
            backups = Backups(
                lambda: self.configuration,
                lambda event: self.generation.chain.emit(event),  # noqa: PLW0108 - a reload changes the chain
            )
            making = asyncio.get_running_loop().create_task(backups.run())
            self._stack.callback(making.cancel)

    def _open_journal(self) -> None:
        settings = self.settings
        outputs = () if self._member else settings.journal.outputs
        self.log = Log(outputs, lambda: self.settings.queue.concurrency)
        self.journal = Journal(
            settings.gateway.state / "journal",
            settings.gateway.hostname,
            stream=f"shard-{self.number}",
            streams=self._member.count + 1 if self._member else 1,
            now=self.services.clock.time,
            keep=settings.journal.keep,
            max_size=settings.journal.max_size,
            outputs=self._member.outputs if self._member else self.log.outputs,
        )
        self.journal.open()
        self._stack.callback(self.journal.close)
        self.log.start(self.journal.emit)
        self._stack.callback(self.log.close)

    async def _build(self, configuration: Configuration, before: Generation | None = None) -> Generation:
        folders = configuration.settings.plugins.folders
        site = replace(configuration.site, shard=self.number)
        generation = self._loader.build(configuration.tree, site, folders, Settings.names(), before)
        try:
            await self._serving.prepare(configuration.settings, generation.order)
        except ConfigError:
            self._loader.retire(generation, before)
            raise
        return generation

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

    async def _end_all(self) -> None:
        for old, work in self._retired.values():
            work.cancel()
            await self._end(old)
        await self._end(self.generation, last=True)

    async def _end(self, old: Generation, *, last: bool = False) -> None:
        """Run `shutdown` of the instances that no other generation has, and drop their modules."""
        live = [self.generation, *(one for one, _ in self._retired.values())]
        others = [one for one in live if one is not old and not last]
        await old.chain.drain()
        for stem in old.unshared(others):
            await old.chain.life(stem, Stages.shutdown, quiet=True)
        if not last:
            self._loader.retire(old, *others)

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
            lambda: self.dispatchers[0].wake(),  # noqa: PLW0108 - they are made after the reception
        )
        self._serving.begin(self.reception)
        watch = asyncio.get_running_loop().create_task(self._serving.watch(self.journal.emit))
        self._stack.callback(watch.cancel)

    async def _work(self, queue: Queue, ended: float) -> None:
        """Open a queue, tell what the journal lacks since it ended, and deliver what is in it."""
        await queue.open()
        self._stack.push_async_callback(queue.close)
        point("start.recover")
        await self._recover(queue, ended - _RECOVERY_WINDOW)
        point("start.recovered")
        dispatcher = Dispatcher(
            queue,
            lambda: self.generation.chain,
            self.journal,
            self.services,
            lambda: self.settings.queue,
            self.reception.admit,
            self.configuration.site,
            self._slots,
        )
        await dispatcher.start()
        self._stack.push_async_callback(dispatcher.stop, GRACE)
        self.queues.append(queue)
        self.dispatchers.append(dispatcher)

    def _left_behind(self) -> Iterator[tuple[int, Queue]]:
        """Give the shards of workers that are no more, as far as they fall to us: mail in them goes on."""
        if self.queue.shared:
            return
        count = self._member.count if self._member else 1
        for folder in sorted((self.settings.gateway.state / "queue").glob("shard-*")):
            digits = folder.name.removeprefix("shard-")
            number = int(digits) if digits.isdecimal() else -1
            if number >= count and number % count == self.number:
                try:
                    yield number, self.queue.estate(folder)
                except QueueError:  # a store that keeps nothing in folders; these are another one's
                    return

    async def _recover(self, queue: Queue, since: float) -> None:
        """Emit what the queue holds and the journal lacks: the process was killed between the two."""
        known = await asyncio.to_thread(journal.accepted, self.journal.folder, since)
        after = first_id(since)
        while page := await queue.accepted(_PAGE, after):
            for entry in page:
                if entry.birth >= since and entry.id not in known:
                    for event in told(entry, recovered=True):
                        self.journal.emit(event)
            after = page[-1].id

    async def _stop_dispatchers(self) -> None:
        await asyncio.gather(*(one.stop(GRACE) for one in self.dispatchers))

    async def serve(self, endpoint: Endpoint, sockets: list[socket.socket]) -> None:
        """Take what comes in by these sockets of a listener."""
        await self._serving.serve(endpoint, sockets)

    def end_sessions(self, user: str) -> int:
        """End the sessions of a login; gives how many there were."""
        return self._serving.end_sessions(user)

    def _retire(self, old: Generation) -> None:
        """End a generation when its last session and delivery are over."""
        deliveries = {task for one in self.dispatchers for task in one.under_way()}
        work = asyncio.get_running_loop().create_task(self._end_unused(old, deliveries))
        self._retired[old.number] = old, work

    async def _end_unused(self, old: Generation, deliveries: set[asyncio.Task[None]]) -> None:
        if deliveries:
            await asyncio.wait(deliveries)
        used = True
        while used:
            # Also mail that is just coming in without a session has time to end.
            await asyncio.sleep(_LOOK)
            used = bool(self.reception.sessions(old.chain))
        del self._retired[old.number]
        await self._end(old)

    def _tell_started(self) -> None:
        self._tell_loaded("")
        if self._member:
            return
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
        if self._member:
            return
        generation.chain.emit(
            events.ConfigLoaded(
                folder=str(self.configuration.folder),
                plugins=tuple(generation.plugins),
                generation=generation.number,
                actor=actor,
            )
        )
