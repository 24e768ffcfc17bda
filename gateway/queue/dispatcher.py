"""The dispatcher: claims what is due, finds out where it goes, and has it delivered. Replaces qmail-send.

Its ready list is bounded, so memory stays flat however long the queue is; lanes (a sender and a domain)
have their turn each, both when recipients are claimed and when they wait for a slot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.envelope import Delivery, Outcome, new_id
from gateway.errors import QueueError
from gateway.faultpoint import point
from gateway.queue.attempt import Attempt, Tools
from gateway.queue.ending import PAUSE, Endings
from gateway.queue.grouping import NOWHERE, deliveries
from gateway.queue.slots import slots_of
from gateway.queue.store import lane
from gateway.queue.suspension import Suspended
from gateway.routing import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from gateway.chain import Chain
    from gateway.envelope import Entry, EntryRecipient
    from gateway.plugin import Services, Site
    from gateway.queue.attempt import Admit, Journal
    from gateway.queue.filter import Filter
    from gateway.queue.slots import Slots
    from gateway.queue.store import Queue
    from gateway.routing import Routed
    from gateway.settings import Queue as Settings

#: The longest that a full ready list is left alone.
_STALLED = 60.0


class Dispatcher:
    """Works the queue of one store, which it alone may claim from."""

    def __init__(
        self,
        store: Queue,
        chain: Callable[[], Chain],
        journal: Journal,
        services: Services,
        settings: Callable[[], Settings],
        admit: Admit,
        site: Site,
        slots: Mapping[str, Slots] | None = None,
    ) -> None:
        """`slots` are given when several dispatchers share them, by channel."""
        self._store = store
        self._chain = chain
        self._clock = services.clock
        self._settings = settings
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()
        self._tools = Tools(store, chain, journal, services.clock, admit, site, self._stopping)
        self._endings = Endings(self._tools)
        self._suspended = Suspended(store, services.clock)
        self._slots = slots or slots_of(settings)
        #: The recipients that we hold, and how many of each lane; a rewrite does not change a lane.
        self._held: dict[tuple[str, int], str] = {}
        self._busy: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Attempts that wait for a plugin: these may be cancelled, what comes after may not.
        self._delivering: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work."""
        self._store.listen(self.wake)
        self._loop = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Something was added, retried or released: look at once."""
        self._woken.set()

    async def stop(self, grace: float = 30.0) -> None:
        """Begin nothing new, wait for deliveries under way, cancel those that take longer than `grace`."""
        self._stopping.set()
        self._woken.set()
        for slots in self._slots.values():
            slots.close()
        if self._loop is not None:
            await self._loop
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._delivering:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def bounce(self, wanted: Filter, actor: str = "") -> list[Entry]:
        """Give up recipients that wait or are held, as a person said; senders get the bounce."""
        entries = await self._store.take(wanted)
        for entry in entries:
            self._hold(entry)
        # Tasks of ours, so that neither the asker's leaving nor a stop in between loses a claim.
        tasks = [self._spawn(self._guarded(entry, self._give_up(entry, actor))) for entry in entries]
        if tasks:
            await asyncio.wait(tasks)
        return entries

    async def settle(self, entry_id: str) -> None:
        """Send the bounce of an entry whose other recipients have failed, now that the rest is held."""
        rest = await self._store.rest(entry_id, ())
        entry = None if rest.open or not rest.failures else await self._store.get(entry_id)
        if entry is None:
            return
        delivery = Delivery(new_id(), entry, NOWHERE, (), entry.sender)
        attempt = Attempt(self._tools, delivery, self._settings())
        await self._endings.end(await attempt.ended([]))

    def under_way(self) -> set[asyncio.Task[None]]:
        """Give the deliveries of this moment: they go on with the chain that they have begun with."""
        return set(self._tasks)

    async def _give_up(self, entry: Entry, actor: str) -> None:
        delivery = Delivery(new_id(), entry, NOWHERE, tuple(entry.recipients), entry.sender)
        attempt = Attempt(self._tools, delivery, self._settings())
        text = "The postmaster has given up this delivery.\n"
        outcomes = [Outcome(one.number, "failed", text, "5.0.0") for one in entry.recipients]
        await self._endings.end(await attempt.ended(outcomes, "bounced", actor))
        self._let_go(entry, entry.recipients)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                now = self._clock.time()
                if not await self._claim(now):
                    await self._wait(now)
            except QueueError as error:
                self._chain().emit(events.QueueFailed(error=str(error)))
                await self._sleep(PAUSE)

    async def _claim(self, now: float) -> bool:
        """Fill the ready list with what is due now; one lane may have no more than half of it."""
        concurrency = self._settings().concurrency
        size = 2 * (concurrency.local + concurrency.remote)
        room = size - len(self._held)
        if room <= 0:
            return False
        entries = await self._store.claim(now, room, self._busy, max(1, size // 2))
        for entry in entries:
            self._hold(entry)
            self._spawn(self._guarded(entry, self._work(entry)))
        return bool(entries)

    async def _wait(self, claimed: float) -> None:
        """Sleep until something is due, or we are woken: by new mail, or by a delivery that has ended."""
        due = await self._store.next_due()
        if due is not None and due <= claimed:
            # It was due and was not given: it waits for the end of a delivery, which wakes us.
            await self._sleep(_STALLED)
        else:  # since we claimed, its time may have come
            await self._sleep(None if due is None else max(0.0, due - self._clock.time()))

    async def _sleep(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, entry: Entry, work: Coroutine[Any, Any, None]) -> None:
        """Whatever goes wrong with one entry stops no other; what we hold of it is given back."""
        recipients = list(entry.recipients)
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a bug here must not keep a claim until the next start
            self._chain().emit(events.QueueFailed(message=entry.id, error=f"{type(error).__name__}: {error}"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), PAUSE)
            await self._give_back(entry, [one for one in recipients if (entry.id, one.number) in self._held])

    async def _work(self, entry: Entry) -> None:
        point("dispatch.claimed")
        await self._route(entry)
        point("dispatch.routed")
        attempts = (self._attempt(delivery) for delivery in deliveries(entry))
        for ended in await asyncio.gather(*attempts, return_exceptions=True):
            if ended:
                raise ended

    async def _route(self, entry: Entry) -> None:
        """Rewrite and route what was never routed. What becomes several is claimed anew."""
        chain = self._chain()
        for one in list(entry.recipients):
            found = [] if one.route else await resolve(chain, one.recipient, entry.sender)
            if len(found) > 1:
                await self._split(chain, entry, one, found)
                continue
            if found and found[0].route:
                self._tell_rewritten(chain, entry, one, found)
                one.recipient, one.route = found[0].recipient, found[0].route

    async def _split(self, chain: Chain, entry: Entry, one: EntryRecipient, found: list[Routed]) -> None:
        """Store a fan-out before any attempt, so that a crash does not repeat a part of it."""
        self._tell_rewritten(chain, entry, one, found)
        now = self._clock.time()
        several = [
            replace(one, recipient=routed.expanded, route=routed.route, state="queued", due=now)
            for routed in found
        ]
        point("dispatch.split")
        await self._store.split(entry, one.number, several)
        entry.recipients = [other for other in entry.recipients if other is not one]
        self._let_go(entry, [one])

    def _tell_rewritten(
        self, chain: Chain, entry: Entry, one: EntryRecipient, found: Sequence[Routed]
    ) -> None:
        to = tuple(routed.recipient.address for routed in found)
        if to == (one.recipient.address,):
            return
        chain.emit(
            events.RecipientRewritten(
                message=entry.id,
                recipient=one.recipient.original,
                number=one.number,
                to=to,
                rule=found[0].recipient.rule,
            )
        )

    async def _attempt(self, delivery: Delivery) -> None:
        """Wait for a slot, deliver, store the end of it."""
        entry, route = delivery.entry, delivery.route
        slots = self._slots[route.channel]
        name = self._held[entry.id, delivery.recipients[0].number]
        if await self._suspended.put_off(delivery):
            self._let_go(entry, delivery.recipients)
            return
        if not await slots.take(name, route.destination):
            await self._give_back(entry, delivery.recipients)
            return
        try:
            point("dispatch.slot")
            if await self._suspended.put_off(delivery):  # while it waited for the slot
                self._let_go(entry, delivery.recipients)
                return
            attempt = Attempt(self._tools, delivery, self._settings())
            outcomes = await self._outcomes(attempt, delivery)
        finally:
            slots.give(route.destination)
        if outcomes is None:
            await self._give_back(entry, delivery.recipients)
            return
        await self._endings.end(await attempt.ended(outcomes, "" if route.plugin else "no_route"))
        self._let_go(entry, delivery.recipients)

    async def _outcomes(self, attempt: Attempt, delivery: Delivery) -> list[Outcome] | None:
        """Ask the plugins, in a task that `stop` may cancel; None when it did."""
        if not delivery.route.plugin:
            return attempt.deferred("no plugin knows where to deliver this address")
        task = asyncio.get_running_loop().create_task(attempt.deliver())
        self._delivering.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            return None
        finally:
            self._delivering.discard(task)

    async def _give_back(self, entry: Entry, recipients: Iterable[EntryRecipient]) -> None:
        some = list(recipients)
        try:
            await self._store.release_claims([replace(entry, recipients=some)])
        except QueueError as error:
            self._chain().emit(events.QueueFailed(message=entry.id, error=str(error)))
        self._let_go(entry, some)

    def _hold(self, entry: Entry) -> None:
        for one in entry.recipients:
            name = self._held[entry.id, one.number] = lane(entry, one)
            self._busy[name] += 1

    def _let_go(self, entry: Entry, recipients: Iterable[EntryRecipient]) -> None:
        for one in recipients:
            name = self._held.pop((entry.id, one.number))
            self._busy[name] -= 1
            if not self._busy[name]:
                del self._busy[name]
        self._woken.set()
