import asyncio

import pytest

from gateway.errors import QueueError
from gateway.workers.calls import merged


async def rows(*given, closed=None, error=None):
    try:
        for row in given:
            await asyncio.sleep(0)
            yield row
        if error:
            raise error
    finally:
        if closed is not None:
            closed.append(True)


async def together(name, parts, limit=0):
    return [row async for row in merged(name, parts, limit)]


def ids(text):
    return [{"id": one} for one in text]


async def test_pages_of_several_parts_are_in_order_and_within_the_limit():
    assert await together("queue.list", [rows(*ids("adf")), rows(), rows(*ids("bce"))]) == ids("abcdef")
    assert await together("queue.list", [rows(*ids("adf")), rows(*ids("bce"))], 3) == ids("abc")
    assert await together("queue.list", [rows(*ids("adf"))], 2) == ids("ad")


async def test_counts_are_added_up():
    one = {"domain": "a.example", "state": "queued", "recipients": 2, "oldest": 5.0, "ages": [1, 1]}
    two = {"domain": "a.example", "state": "queued", "recipients": 3, "oldest": 4.0, "ages": [0, 3]}
    held = {"domain": "a.example", "state": "held", "recipients": 1, "oldest": 9.0, "ages": [1, 0]}
    found = await together("queue.stats", [rows(dict(one)), rows(dict(two), held)])
    assert found == [held, {**one, "recipients": 5, "oldest": 4.0, "ages": [1, 4]}]


async def test_changes_of_all_parts_are_made_though_the_asker_leaves_at_the_first_row():
    changed, closed = [], []

    async def change(name):
        changed.append(name)
        async for row in rows(*ids("xy"), closed=closed):
            yield row

    stream = merged("queue.hold", [change("one"), change("two")])
    assert await anext(stream) == {"id": "x"}
    await stream.aclose()
    assert sorted(changed) == ["one", "two"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(closed) == 2


async def test_an_error_of_one_part_is_told():
    with pytest.raises(QueueError, match="broken"):
        await together("queue.hold", [rows(*ids("ab")), rows(error=QueueError("broken"))])
