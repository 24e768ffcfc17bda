"""What people do to a queue is told in full, also when who asked does not listen to the end."""

import base64
import time

import pytest

from gateway import operations
from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, Route, new_id
from gateway.errors import AddressError
from gateway.message import FileBody, Message
from gateway.operations import Operations
from gateway.queue import Filter
from gateway.queue.memory import MemoryQueue

CHANGES = ["retry", "hold", "release", "delete", "redirect", "reroute"]


class Desk:
    """Operations on a queue in memory, and what they told."""

    def __init__(self):
        self.queue, self.told, self.woken = MemoryQueue(), [], []
        self.operations = Operations(self.queue, self.told.append, lambda: self.woken.append(1))

    async def add(self, *recipients, sender="s@x.example", **fields):
        entry = Entry(new_id(), Address(sender), Message(b"A: b\n"), list(recipients), time.time(), **fields)
        await self.queue.add(entry)
        return entry.id

    def ask(self, name, **arguments):
        return self.operations.calls[f"queue.{name}"](actor="ann", **arguments)

    async def rows(self, name, **arguments):
        return [row async for row in self.ask(name, **arguments)]


@pytest.fixture
async def desk():
    made = Desk()
    await made.queue.open()
    yield made
    await made.queue.close()


def to(address="r@x.example", state="queued", **more):
    return EntryRecipient(0, Recipient.of(address), state, **more)


def arguments_of(verb):
    return {"to": "new@y.example"} if verb == "redirect" else {}


@pytest.mark.parametrize("verb", CHANGES)
async def test_every_change_is_told_when_the_client_leaves_after_the_first_row(desk, verb):
    for _ in range(3):
        await desk.add(to(state="held" if verb == "release" else "queued"))
    rows = desk.ask(verb, **arguments_of(verb))
    await anext(rows)
    await rows.aclose()
    assert [event.actor for event in desk.told] == ["ann"] * 3
    assert bool(desk.woken) == (verb in ("retry", "release", "redirect", "reroute"))


@pytest.mark.parametrize("verb", CHANGES)
async def test_a_change_goes_over_all_pages(desk, verb, monkeypatch):
    monkeypatch.setattr(operations, "PAGE", 2)
    ids = [await desk.add(to(state="held" if verb == "release" else "queued")) for _ in range(5)]
    rows = await desk.rows(verb, sender="s@*", **arguments_of(verb))
    assert [row["id"] for row in rows] == ids
    assert [event.message for event in desk.told] == ids


@pytest.mark.parametrize("verb", CHANGES)
async def test_a_dry_run_says_what_would_be_changed_and_changes_nothing(desk, verb):
    busy = await desk.add(to("busy@x.example"), to("other@x.example", "held"))
    await desk.queue.take(Filter(recipient="busy@x.example"))
    for state in ("queued", "held"):
        await desk.add(to(state=state))
        await desk.add(to("r@y.example", state))
    before = [row async for row in desk.ask("list")]
    wanted = {"domain": "x.example", **arguments_of(verb)}
    tried = await desk.rows(verb, dry_run=True, **wanted)
    assert (await desk.rows("list"), desk.told, desk.woken) == (before, [], [])
    done = [row["id"] for row in await desk.rows(verb, **wanted)]
    assert [row["id"] for row in tried] == done != []
    assert (busy in done) == (verb in ("release", "redirect", "reroute"))


async def test_list_gives_all_or_a_page(desk, monkeypatch):
    monkeypatch.setattr(operations, "PAGE", 2)
    ids = [await desk.add(to()) for _ in range(5)]
    assert [row["id"] for row in await desk.rows("list")] == ids
    assert [row["id"] for row in await desk.rows("list", limit=3)] == ids[:3]
    assert [row["id"] for row in await desk.rows("list", after=ids[0], limit=1)] == ids[1:2]


async def test_list_says_who_sent_what_is_held_and_what_is_suspended(desk):
    facts = {"client_ip": "192.0.2.7", "user": "ann", "subject": "hello", "message_id": "1@x"}
    held = Recipient(Address("a@x.example"), Address("a@x.example"), held="a virus?", held_by="scanner")
    await desk.add(EntryRecipient(0, held, "held"), to("b@y.example"), facts=facts)
    await desk.rows("suspend", destination="y.*", since=1.0, reason="moved")
    (row,) = await desk.rows("list")
    assert (row["client"], row["user"], row["subject"], row["message_id"]) == (
        "192.0.2.7",
        "ann",
        "hello",
        "1@x",
    )
    first, second = row["recipients"]
    assert (first["held"], first["held_by"], first["suspended"]) == ("a virus?", "scanner", "")
    assert (second["held"], second["suspended"]) == ("", "y.*")


async def test_a_redirect_tells_from_where_to_where(desk):
    await desk.add(to("a@x.example"), EntryRecipient(1, Recipient.of("b@x.example")))
    await desk.rows("redirect", to="new@y.example", recipient="b@x.example")
    (told,) = desk.told
    assert (told.NAME, told.to, told.recipients) == ("message.redirected", "new@y.example", ("b@x.example",))


@pytest.mark.parametrize("address", ["", "joe", "@x.example", "a\nb@x.example"])
async def test_a_redirect_to_no_address_changes_nothing(desk, address):
    await desk.add(to())
    with pytest.raises(AddressError):
        await desk.rows("redirect", to=address)
    assert (await desk.rows("list"))[0]["recipients"][0]["address"] == "r@x.example"


async def test_suspending_and_resuming_are_told_once(desk):
    waiting = await desk.add(to("a@x.example", due=time.time() + 3600))
    routed = to("b@z.example", due=time.time() + 3600, route=Route("remote", "remote", "x.example"))
    behind = await desk.add(routed)
    other = await desk.add(to("c@y.example", due=time.time() + 3600))
    said = {"destination": "x.example", "since": 5.0, "until": time.time() + 60, "reason": "full"}
    (row,) = await desk.rows("suspend", **said)
    assert row == {**said, "actor": "ann"}
    assert await desk.rows("suspend", **said) == []  # another worker of the same gateway is asked, too
    assert await desk.rows("suspended") == [row]
    assert await desk.rows("resume", destination="x.example") == [row]
    assert await desk.rows("resume", destination="x.example") == []
    suspended, resumed = desk.told
    assert (suspended.NAME, suspended.destination, suspended.reason) == (
        "destination.suspended",
        "x.example",
        "full",
    )
    assert (resumed.NAME, resumed.destination, resumed.actor) == ("destination.resumed", "x.example", "ann")
    due = {row["id"]: row["recipients"][0]["due"] <= time.time() for row in await desk.rows("list")}
    assert due == {waiting: True, behind: True, other: False}
    assert desk.woken


async def test_show_gives_the_content_byte_for_byte(desk, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"\n\xff\x00" + b"x" * 200_000)
    entry = Entry(new_id(), Address(""), Message(b"A: \xff\n", FileBody(body, 200_003)), [to()], time.time())
    await desk.queue.add(entry)
    row, *pieces = await desk.rows("show", ids=[entry.id], content=True)
    content = b"".join(base64.b64decode(piece["content"]) for piece in pieces)
    assert content == b"A: \xff\n\n\xff\x00" + b"x" * 200_000
    assert row["header"] == "A: \\xff\n"
    assert await desk.rows("show", ids=[entry.id]) == [row]


async def test_more_recipients_than_are_taken_at_a_time_are_bounced():
    queue, takes = MemoryQueue(), []
    await queue.open()
    entry = Entry(
        new_id(),
        Address("s@x.example"),
        Message(b""),
        [EntryRecipient(i, Recipient.of(f"r{i}@x.example")) for i in range(7)],
        time.time(),
    )
    await queue.add(entry)

    async def bounce(wanted, actor):
        taken = await queue.take(wanted, 3)
        takes.append((actor, sum(len(one.recipients) for one in taken)))
        return taken

    calls = Operations(queue, lambda _event: None, bounce=bounce).calls
    assert [row["id"] async for row in calls["queue.bounce"](actor="ann")] == [entry.id]
    assert takes == [("ann", 3), ("ann", 3), ("ann", 1), ("ann", 0)]
    assert [row async for row in calls["queue.bounce"](actor="ann", dry_run=True)] == []
    await queue.close()


async def test_a_bounce_that_comes_back_is_not_asked_for_again():
    queue, takes = MemoryQueue(), []
    await queue.open()
    await queue.add(Entry(new_id(), Address(""), Message(b""), [to()], time.time()))

    async def bounce(wanted, _actor):
        takes.append(1)
        taken = await queue.take(wanted)
        await queue.release_claims(taken)
        return taken

    calls = Operations(queue, lambda _event: None, bounce=bounce).calls
    assert len([row async for row in calls["queue.bounce"](actor="ann")]) == 1
    assert len(takes) == 2
    await queue.close()


@pytest.mark.parametrize("verb", [*CHANGES, "suspend"])
async def test_what_is_done_is_told_on_stable_storage(desk, verb):
    log = []

    async def flush():
        log.append("flush")

    calls = Operations(desk.queue, lambda event: log.append(event.NAME), flush=flush).calls
    await desk.add(to(state="held" if verb == "release" else "queued"))
    more = {"destination": "x.example", "since": 1.0} if verb == "suspend" else arguments_of(verb)
    rows = calls[f"queue.{verb}"](actor="ann", **more)
    await anext(rows)
    assert (len(log), log[1]) == (2, "flush")
    await rows.aclose()
