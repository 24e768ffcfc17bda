"""Addresses that do not answer are left alone for a while, as qmail-tcpto has it (qmail spec 7.4)."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway import Clock, Counters
    from gateway.smtp import Target

PREFIX = "remote.backoff "
#: A second connection in vain counts only so many seconds after the first, and they count up to MOST.
APART, MOST = 120.0, 10
#: From the second one on the address rests for 64 to 97 minutes, by chance.
REST, SPREAD = 3840.0, 1984.0
#: What is known of an address is forgotten after a day without a try.
KEPT = 86400.0


class Trouble(NamedTuple):
    """What is known of an address."""

    #: Connections in vain.
    tries: int
    #: When the last one was, and until when the address rests; seconds since the epoch.
    last: float
    until: float
    #: The name under which it was tried last: many hosts may be one address.
    host: str = ""


class Backoff:
    """Remembers troubles as marks, so that all workers share them and a command can see them."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock

    async def known(self, target: Target) -> Trouble | None:
        """Give what is known of an address."""
        mark = await self._counters.marked(_key(target))
        return Trouble(**json.loads(mark.note)) if mark else None

    def rests(self, trouble: Trouble | None) -> bool:
        """Whether the address is to be left alone now."""
        return trouble is not None and self._clock.time() < trouble.until

    async def timed_out(self, target: Target, trouble: Trouble | None) -> None:
        """Remember that nobody answered."""
        spread = REST + random.uniform(0, SPREAD)  # noqa: S311 - no secret, only not all at once
        new = after_timeout(trouble, self._clock.time(), spread)
        if new is not trouble:
            note = json.dumps(new._replace(host=target.host)._asdict())
            await self._counters.mark(_key(target), KEPT, note)

    async def answered(self, target: Target, trouble: Trouble | None) -> None:
        """Forget: whatever it said, it is there."""
        if trouble:
            await self._counters.unmark(_key(target))


def after_timeout(trouble: Trouble | None, now: float, rest: float) -> Trouble:
    """Count one more connection in vain, and let the address rest from the second on."""
    if trouble is None:
        return Trouble(1, now, 0.0)
    if now - trouble.last < APART:
        return trouble
    return Trouble(min(MOST, trouble.tries + 1), now, now + rest)


def _key(target: Target) -> str:
    return PREFIX + target.address
