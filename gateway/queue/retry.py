"""qmail's quadratic schedule (spec 5.3). Pure: no clock."""

from __future__ import annotations

from math import isqrt


def next_attempt(birth: float, now: float, step: int) -> float:
    """Say when to try again: `birth + (isqrt(age) + step)^2`, in seconds since the epoch.

    The root is floored, so that a try which starts a little late does not shift the series. A birth
    in the future counts as an age of 0.
    """
    age = max(0, int(now - birth))
    return birth + (isqrt(age) + step) ** 2
