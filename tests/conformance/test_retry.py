"""The group `retry` of the vectors: when qmail-send tries again."""

import pytest
import vectors

from gateway import Delivery, Entry, Message, Route
from gateway.address import Address
from gateway.hookspecs import Stages


@pytest.mark.parametrize("case", vectors.cases("retry"))
async def test_retry(case, tmp_path, request):
    chain, plugins = vectors.chain_of(tmp_path, {}, "quadratic_retry")
    now = plugins["quadratic_retry"].clock.time()
    entry = Entry("1", Address("s@remote.example"), Message(b""), [], birth=now - case["input"]["age"])
    delivery = Delivery("1", entry, Route("x", case["input"]["channel"]), (), entry.sender)
    due = (await chain.ask(Stages.retry, delivery, None)).value
    found = {"next_try_after_birth": due - entry.birth}
    vectors.compare(request, "retry", case, found, case["expect"])
