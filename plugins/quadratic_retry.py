"""quadratic_retry: try deferred recipients again at growing intervals. Replaces qmail-send's schedule.

The n-th retry is due (n * step)^2 seconds after the message was accepted, so intervals grow by the same
amount each time: with a step of 20 after 6m40s, 26m40s, 1h, and so on. A late try does not shift the rest.

Options: `local` and `remote`, the step of each channel. Events: none; `delivery.deferred` tells when the
next attempt is due.
"""

from __future__ import annotations

from pydantic import Field

from gateway import Delivery, Plugin, Section, hookimpl
from gateway.queue import next_attempt


class Settings(Section):
    """The steps are qmail's own by default."""

    #: Step of the local channel, in seconds.
    local: int = Field(default=10, ge=1, le=3600)
    #: Step of the remote channel, in seconds.
    remote: int = Field(default=20, ge=1, le=3600)


class QuadraticRetry(Plugin[Settings]):
    """qmail's schedule."""

    @hookimpl
    def retry(self, delivery: Delivery) -> float:
        """Count from the birth of the message to now."""
        step = self.settings.local if delivery.route.channel == "local" else self.settings.remote
        return next_attempt(delivery.entry.birth, self.clock.time(), step)
