"""What people do to a queue is told in full, also when who asked does not listen to the end."""

import time

import pytest

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import Message
from gateway.operations import Operations
from gateway.queue.memory import MemoryQueue


@pytest.mark.parametrize("verb", ["retry", "hold", "release", "delete"])
async def test_every_change_is_told_when_the_client_leaves_after_the_first_row(verb):
    queue, told, woken = MemoryQueue(), [], []
    await queue.open()
    state = "held" if verb == "release" else "queued"
    for _ in range(3):
        recipient = EntryRecipient(0, Recipient.of("r@x.example"), state)
        await queue.add(Entry(new_id(), Address("s@x.example"), Message(b"A: b\n"), [recipient], time.time()))
    rows = Operations(queue, told.append, lambda: woken.append(1)).calls[f"queue.{verb}"](actor="ann")
    await anext(rows)
    await rows.aclose()
    assert [event.actor for event in told] == ["ann"] * 3
    assert bool(woken) == (verb in ("retry", "release"))
