"""What people may do to a queue, for the control socket and for commands that own the queue themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import events
from gateway.queue import Filter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.envelope import Entry
    from gateway.queue import Queue

    Rows = AsyncIterator[dict[str, Any]]
    #: (filter, who asks) -> the entries that were bounced; the dispatcher does it.
    Bounce = Callable[[Filter, str], Awaitable[list[Entry]]]


class Operations:
    """The calls `queue.*` of one queue; every change is an event with its actor.

    All events are told before the first row is given: who asked may leave before the last.
    """

    def __init__(
        self,
        queue: Queue,
        emit: Callable[[events.Event], None],
        wake: Callable[[], None] = lambda: None,
        bounce: Bounce | None = None,
        settle: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._queue = queue
        self._emit = emit
        self._wake = wake
        self._bounce_all = bounce
        self._settle = settle
        self.calls: dict[str, Callable[..., Rows]] = {
            "queue.list": self._list,
            "queue.show": self._show,
            "queue.stats": self._stats,
            "queue.retry": self._retry,
            "queue.hold": self._hold,
            "queue.release": self._release,
            "queue.delete": self._delete,
        }
        if bounce:
            self.calls["queue.bounce"] = self._bounce

    async def _list(self, actor: str, limit: int = 1000, after: str = "", **wanted: Any) -> Rows:
        del actor
        for entry in await self._queue.list(Filter(**wanted), limit, after):
            yield describe(entry)

    async def _show(self, actor: str, **wanted: Any) -> Rows:
        del actor
        for entry in await self._queue.list(Filter(**wanted), 1):
            whole = await self._queue.get(entry.id)
            if whole is not None:
                header = whole.message.header.decode("utf-8", "backslashreplace")
                yield {**describe(whole), "facts": dict(whole.facts), "header": header}

    async def _stats(self, actor: str) -> Rows:
        del actor
        for one in await self._queue.stats():
            yield {
                "domain": clean(one.domain),
                "state": one.state,
                "recipients": one.recipients,
                "oldest": one.oldest,
            }

    async def _retry(self, actor: str, **wanted: Any) -> Rows:
        changed = await self._queue.retry(Filter(**wanted))
        for entry in changed:
            self._emit(events.MessageRetried(message=entry.id, actor=actor))
        self._wake()
        for entry in changed:
            yield describe(entry)

    async def _hold(self, actor: str, **wanted: Any) -> Rows:
        changed = await self._queue.hold(Filter(**wanted))
        for entry in changed:
            self._emit(events.MessageHeld(message=entry.id, actor=actor))
        for entry in changed:
            # Held recipients must not delay the bounce of those that have failed.
            if self._settle:
                await self._settle(entry.id)
        for entry in changed:
            yield describe(entry)

    async def _release(self, actor: str, **wanted: Any) -> Rows:
        changed = await self._queue.release(Filter(**wanted))
        for entry in changed:
            self._emit(events.MessageReleased(message=entry.id, actor=actor))
        self._wake()
        for entry in changed:
            yield describe(entry)

    async def _delete(self, actor: str, **wanted: Any) -> Rows:
        deleted = await self._queue.delete(Filter(**wanted))
        for entry in deleted:
            recipients = tuple(one.recipient.address for one in entry.recipients)
            event = events.MessageDeleted(
                message=entry.id, actor=actor, sender=entry.sender, recipients=recipients
            )
            self._emit(event)
        for entry in deleted:
            yield describe(entry)

    async def _bounce(self, actor: str, **wanted: Any) -> Rows:
        # The dispatcher tells these events itself, with the bounce's id.
        assert self._bounce_all  # noqa: S101 - the call exists only with it
        for entry in await self._bounce_all(Filter(**wanted), actor):
            yield describe(entry)


def describe(entry: Entry) -> dict[str, Any]:
    """Give an entry as `queue list --json` prints it."""
    return {
        "id": entry.id,
        "sender": clean(entry.sender),
        "size": entry.size,
        "birth": entry.birth,
        "origin": entry.origin,
        "parent": entry.parent,
        "recipients": [
            {
                "address": clean(one.recipient.address),
                "original": clean(one.recipient.original),
                "state": one.state,
                "attempts": one.attempts,
                "due": one.due,
                "status": one.status,
                "report": clean(one.report),
                "route": f"{one.route.plugin} {one.route.destination}".strip() if one.route else "",
            }
            for one in entry.recipients
        ],
    }


def clean(text: str) -> str:
    """Make what came from outside printable: JSON takes no lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
