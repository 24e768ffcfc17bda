"""quadratic_retry: qmail's series, for both channels."""

import pytest

from gateway.address import Address
from gateway.envelope import Delivery, Entry, Outcome, Route
from gateway.hookspecs import Stages
from gateway.message import Message
from gateway.queue import next_attempt


@pytest.mark.parametrize(
    ("age", "step", "expected"),
    [(0, 10, 100), (100, 10, 400), (101, 10, 400), (399.9, 10, 841), (400, 20, 1600), (-50, 20, 400)],
)
def test_next_attempt(age, step, expected):
    assert next_attempt(5000.0, 5000.0 + age, step) == 5000.0 + expected


def test_a_week_has_78_local_and_39_remote_tries():
    for step, tries in ((10, 78), (20, 39)):
        at, count = 0.0, 0
        while at <= 604800:
            at, count = next_attempt(0.0, at, step), count + 1
        assert count == tries


@pytest.mark.parametrize(
    ("yaml", "channel", "expected"),
    [
        ("quadratic_retry: {}", "local", 100),
        ("quadratic_retry: {}", "remote", 400),
        ("quadratic_retry: {remote: 60}", "remote", 3600),
    ],
)
async def test_channels_have_steps_of_their_own(chain_of, clock, yaml, channel, expected):
    chain = chain_of(yaml, "quadratic_retry")
    entry = Entry("1", Address(""), Message(b""), [], clock.time())
    delivery = Delivery("1", entry, Route("x", channel), (), Address(""))
    answer = await chain.ask(Stages.retry, delivery, Outcome(0, "deferred"))
    assert answer.value == clock.time() + expected
