"""What people may do to a queue, for the control socket and for commands that own the queue themselves."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.address import parse_path
from gateway.errors import AddressError, QueueError
from gateway.queue import Filter, Suspension
from gateway.queue.shown import clean, describe, describe_suspension

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from gateway.envelope import Entry
    from gateway.queue import Queue

    Rows = AsyncIterator[dict[str, Any]]
    Change = Callable[[Filter], Awaitable[list[Entry]]]
    Tell = Callable[[Entry], events.Event]
    #: (filter, who asks) -> the entries that were bounced; the dispatcher does it.
    Bounce = Callable[[Filter, str], Awaitable[list[Entry]]]

#: Entries that are looked for, and changed in one transaction: all else goes on in between.
PAGE = 1000
#: The states that each change takes recipients from.
SOURCES: dict[str, frozenset[str]] = {
    "retry": frozenset({"queued"}),
    "hold": frozenset({"queued"}),
    "release": frozenset({"held"}),
    "bounce": frozenset({"queued", "held"}),
    "redirect": frozenset({"queued", "held"}),
    "reroute": frozenset({"queued", "held"}),
    "delete": frozenset({"queued", "held", "failed", "expired"}),
}
#: The changes that make recipients due at once.
_DUE = frozenset({"retry", "release", "redirect", "reroute"})


class Operations:
    """The calls `queue.*` of one queue; every change is an event with its actor.

    A change goes page by page. All events of a page are told before its first row is given, since who asked
    may leave before the last; then the pages behind it are left as they are.
    """

    def __init__(
        self,
        queue: Queue,
        emit: Callable[[events.Event], None],
        wake: Callable[[], None] = lambda: None,
        bounce: Bounce | None = None,
        settle: Callable[[str], Awaitable[None]] | None = None,
        flush: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._queue = queue
        self._emit = emit
        self._wake = wake
        self._bounce_all = bounce
        self._settle = settle
        self._flush = flush
        self.calls: dict[str, Callable[..., Rows]] = {
            "queue.list": self._list,
            "queue.show": self._show,
            "queue.stats": self._stats,
            "queue.retry": self._retry,
            "queue.hold": self._hold,
            "queue.release": self._release,
            "queue.delete": self._delete,
            "queue.redirect": self._redirect,
            "queue.reroute": self._reroute,
            "queue.suspend": self._suspend,
            "queue.resume": self._resume,
            "queue.suspended": self._suspended,
        }
        if bounce:
            self.calls["queue.bounce"] = self._bounce

    async def _list(self, actor: str, limit: int = 0, after: str = "", **wanted: Any) -> Rows:
        del actor
        suspended = await self._queue.suspended()
        given = 0
        async for page in self._pages(Filter(**wanted), min(limit or PAGE, PAGE), after):
            for entry in page:
                yield describe(entry, suspended)
                given += 1
                if given == limit:
                    return

    async def _show(self, actor: str, *, content: bool = False, **wanted: Any) -> Rows:
        del actor
        suspended = await self._queue.suspended()
        for entry in await self._queue.list(Filter(**wanted), 1):
            whole = await self._queue.get(entry.id)
            if whole is None:
                continue
            header = whole.message.header.decode("utf-8", "backslashreplace")
            yield {**describe(whole, suspended), "facts": dict(whole.facts), "header": header}
            if content:
                for chunk in _chunks(whole):
                    yield {"content": base64.b64encode(chunk).decode()}

    async def _stats(self, actor: str) -> Rows:
        del actor
        for one in await self._queue.stats():
            yield {
                "domain": clean(one.domain),
                "state": one.state,
                "recipients": one.recipients,
                "oldest": one.oldest,
                "ages": list(one.ages),
            }

    def _retry(self, actor: str, **more: Any) -> Rows:
        def tell(entry: Entry) -> events.Event:
            return events.MessageRetried(message=entry.id, actor=actor)

        return self._change("retry", self._queue.retry, tell, **more)

    def _hold(self, actor: str, **more: Any) -> Rows:
        def tell(entry: Entry) -> events.Event:
            return events.MessageHeld(message=entry.id, actor=actor)

        return self._change("hold", self._queue.hold, tell, **more)

    def _release(self, actor: str, **more: Any) -> Rows:
        def tell(entry: Entry) -> events.Event:
            return events.MessageReleased(message=entry.id, actor=actor)

        return self._change("release", self._queue.release, tell, **more)

    def _delete(self, actor: str, **more: Any) -> Rows:
        def tell(entry: Entry) -> events.Event:
            recipients = tuple(one.recipient.address for one in entry.recipients)
            return events.MessageDeleted(
                message=entry.id, actor=actor, sender=entry.sender, recipients=recipients
            )

        return self._change("delete", self._queue.delete, tell, **more)

    def _redirect(self, actor: str, to: str, **more: Any) -> Rows:
        address, _ = parse_path(f"TO:<{to}>", "TO")
        if not address.domain or not address.local_part:
            raise AddressError(f"{to}: an address with a domain is wanted")

        def tell(entry: Entry) -> events.Event:
            moved = [one.recipient for one in entry.recipients if one.recipient.chosen == address]
            originals = tuple(one.original for one in moved)
            return events.MessageRedirected(message=entry.id, actor=actor, to=address, recipients=originals)

        return self._change("redirect", lambda wanted: self._queue.redirect(wanted, address), tell, **more)

    def _reroute(self, actor: str, **more: Any) -> Rows:
        def tell(entry: Entry) -> events.Event:
            return events.MessageRerouted(message=entry.id, actor=actor)

        return self._change("reroute", self._queue.reroute, tell, **more)

    def _bounce(self, actor: str, **more: Any) -> Rows:
        async def bounce(wanted: Filter) -> list[Entry]:
            """Ask until nothing new is taken: a message may have more recipients than are taken at a time."""
            assert self._bounce_all  # noqa: S101 - the call exists only with it
            found: dict[str, Entry] = {}
            seen: set[tuple[str, int]] = set()
            while entries := await self._bounce_all(wanted, actor):
                known = len(seen)
                seen.update((entry.id, one.number) for entry in entries for one in entry.recipients)
                if len(seen) == known:
                    break
                found.update((entry.id, entry) for entry in entries)
            return list(found.values())

        # The dispatcher tells these events itself, with the bounce's id.
        return self._change("bounce", bounce, None, **more)

    async def _change(
        self,
        verb: str,
        change: Change,
        tell: Tell | None,
        *,
        dry_run: bool = False,
        **wanted: Any,
    ) -> Rows:
        meant = Filter(**wanted)
        async for page in self._pages(meant):
            if dry_run:
                changed = [entry for entry in page if _is_meant(verb, meant, entry)]
            else:
                changed = await change(replace(meant, ids=[entry.id for entry in page]))
                await self._told(verb, changed, tell)
            for entry in changed:
                yield describe(entry)

    async def _told(self, verb: str, changed: list[Entry], tell: Tell | None) -> None:
        if tell:
            for entry in changed:
                self._emit(tell(entry))
        if changed and verb in _DUE:
            self._wake()
        if self._settle and verb == "hold":
            for entry in changed:
                # Held recipients must not delay the bounce of those that have failed.
                await self._settle(entry.id)
        await self._safe()

    async def _safe(self) -> None:
        """Have what was told on stable storage: who hears that it is done may count on the event."""
        if self._flush:
            await self._flush()

    async def _pages(self, wanted: Filter, size: int = PAGE, after: str = "") -> AsyncIterator[list[Entry]]:
        while page := await self._queue.list(wanted, size, after):
            yield page
            if len(page) < size:
                return
            after = page[-1].id

    async def _suspend(
        self, actor: str, destination: str, since: float, until: float = 0.0, reason: str = ""
    ) -> Rows:
        """Several workers may be asked: the first keeps it and tells."""
        suspension = Suspension(destination, since, until, actor, reason)
        if await self._queue.suspend(suspension):
            event = events.DestinationSuspended(
                actor=actor, reason=reason, destination=destination, until=until
            )
            self._emit(event)
            await self._safe()
            yield describe_suspension(suspension)

    async def _resume(self, actor: str, destination: str) -> Rows:
        """Several workers may be asked: the first tells, each lets its own mail go."""
        gone = await self._queue.resume(destination)
        if gone:
            self._emit(events.DestinationResumed(actor=actor, destination=destination))
            await self._safe()
            yield describe_suspension(gone)
        async for page in self._pages(Filter(domain=destination, state="queued")):
            await self._queue.retry(Filter([entry.id for entry in page], domain=destination))
            self._wake()

    async def _suspended(self, actor: str) -> Rows:
        del actor
        for one in await self._queue.suspended():
            yield describe_suspension(one)


def _is_meant(verb: str, wanted: Filter, entry: Entry) -> bool:
    """Whether a change would touch an entry."""
    if verb == "delete" and any(one.state == "attempting" for one in entry.recipients):
        return False
    return any(one.state in SOURCES[verb] and wanted.matches(entry, one) for one in entry.recipients)


def _chunks(entry: Entry) -> Iterator[bytes]:
    """Give the whole message in pieces. Raises QueueError when it goes meanwhile."""
    try:
        yield from entry.message.chunks()
    except FileNotFoundError as error:
        raise QueueError(f"message {entry.id} has left the queue while it was read") from error
