"""What every store must do, run over each of them."""

import asyncio
from dataclasses import replace

import pytest

from gateway.address import Address
from gateway.envelope import EntryRecipient, Recipient, Route, new_id
from gateway.message import FileBody, Message, Spool
from gateway.queue import MOVES, Filter, Finish, Snapshot, Suspension
from gateway.queue.archive.form import read_snapshot, snapshot_json

BIG = b"x" * (300 * 1024)
#: Who else may claim nothing.
LATER = 3600.0


async def claim(store, now, limit=1000, busy=None, per_lane=1000):
    return await store.claim(now, limit, busy or {}, per_lane)


async def end(store, entry, state, *numbers, due=0.0, births=(), **more):
    changed = [
        replace(one, state=state, due=due, **more)
        for one in entry.recipients
        if not numbers or one.number in numbers
    ]
    await store.finish([Finish(entry, changed, births)])


async def states(store, entry):
    found = await store.get(entry.id)
    return [one.state for one in found.recipients] if found else None


async def test_what_was_added_comes_back_whole(store, entry):
    one = entry(
        "R@Local.Example",
        sender="",
        parent="p",
        origin="forward",
        params={"BODY": "8BITMIME"},
        facts={"client_ip": "192.0.2.7"},
        notes={"site": {"score": 5}},
    )
    recipient = Recipient(
        Address("abc-r@x.example"),
        Address("R@Local.Example"),
        "virtual_domains",
        "f:4: r",
        {"NOTIFY": "NEVER"},
    )
    one.recipients[0].recipient = recipient
    one.recipients[0].route = Route("dot_qmail", "local", "", "f:1")
    await store.add(one)
    kept = await store.get(one.id)
    assert kept == replace(one, message=kept.message, recipients=kept.recipients)
    assert (kept.message.header, bytes(kept.message)) == (b"Subject: t\n", b"Subject: t\n\nbody\n")
    assert kept.recipients == one.recipients


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe@\xe9.example", "\u00fc@\u00fc.example".encode(), b"'\"%_\\@x.example"]
)
async def test_addresses_are_bytes(store, entry, clock, raw):
    address = Address.decode(raw)
    await store.add(entry(address, sender=address, notes={"n": address}))
    await store.add(entry(address, address, sender=address))
    for found in await claim(store, clock.time()):
        assert bytes(found.sender) == raw
        assert {bytes(one.recipient.address) for one in found.recipients} == {raw}
    assert len(await store.list(Filter(sender=address))) == 2
    assert len(await store.list(Filter(recipient=address))) == 2


@pytest.mark.parametrize(("move", "operation"), MOVES.items(), ids=str)
async def test_moves(store, entry, clock, move, operation):
    before, after = move
    first = "held" if "held" in move and before != "queued" else "queued"
    one = entry("a@x.example", "b@x.example", state=first)
    await store.add(one)
    assert await states(store, one) == [first] * 2
    if before == "attempting":
        (one,) = await (store.take(Filter([one.id])) if after == "held" else claim(store, clock.time()))
    if operation == "finish":
        await end(store, one, after, 0, due=clock.time() + LATER)
    elif operation == "split":
        await store.split(one, 0, [EntryRecipient(0, Recipient.of("c@y.example"))] * 2)
    elif operation in ("hold", "release", "take"):
        await getattr(store, operation)(Filter(ids=[one.id]))
    elif operation == "claim":
        await claim(store, clock.time())
    elif operation == "release_claims":
        await store.release_claims([one])
    found = {r.recipient.address: r.state for r in (await store.get(one.id)).recipients}
    expected = {"delivered": None, "": None}.get(after, after)
    assert found.get("a@x.example") == expected
    assert operation != "split" or found["c@y.example"] == "queued"


async def test_held_mail_that_a_person_took_is_held_again_after_a_crash(store, entry, clock):
    one = entry("a@x.example", "b@x.example", state="held")
    await store.add(one)
    since = (await store.get(one.id)).recipients[0].due
    (taken,) = await store.take(Filter([one.id]))
    assert (await store.rest(one.id, [0, 1])).held == 0
    archived = read_snapshot(snapshot_json(Snapshot(taken)), taken.message)
    assert {(found.state, found.due) for found in archived.entry.recipients} == {("held", since)}
    await store.close()
    await store.open()
    assert await claim(store, clock.time() + 10 * LATER) == []
    kept = (await store.get(one.id)).recipients
    assert {(found.state, found.due) for found in kept} == {("held", since)}
    assert (await store.rest(one.id, ())).held == 2


async def test_an_entry_is_forgotten_with_its_last_recipient(store, entry, clock):
    await store.add(entry("a@x.example", "b@x.example"))
    (one,) = await claim(store, clock.time())
    await end(store, one, "failed", 0)
    assert await states(store, one) == ["failed", "attempting"]
    await end(store, one, "delivered", 1)
    assert await store.get(one.id) is None
    assert await store.stats() == []


async def test_a_deferred_recipient_keeps_what_the_attempt_found_out(store, entry, clock):
    await store.add(entry("a@x.example"))
    (one,) = await claim(store, clock.time())
    one.recipients[0].recipient = one.recipients[0].recipient.at("abc-a@x.example", claimed="virtual_domains")
    due = clock.time() + LATER
    route = Route("remote", "remote", "x.example")
    await end(store, one, "queued", due=due, route=route, attempts=3, report="no\n", status="4.4.1")
    assert await claim(store, due - 1) == []
    assert await store.next_due() == due
    ((kept,),) = [found.recipients for found in await claim(store, due)]
    assert (kept.route, kept.attempts, kept.report, kept.status) == (route, 3, "no\n", "4.4.1")
    assert (kept.recipient.address, kept.recipient.original) == ("abc-a@x.example", "a@x.example")


async def test_births_come_with_the_outcome(store, entry, clock):
    await store.add(entry())
    (one,) = await claim(store, clock.time())
    born = entry("b@y.example", sender="")
    await end(store, one, "delivered", births=[born])
    assert await store.get(one.id) is None
    assert [found.id for found in await claim(store, clock.time())] == [born.id]


async def test_a_finish_that_fails_changes_nothing(store, entry, clock):
    if type(store).__name__ == "MemoryQueue":
        pytest.skip("memory does not fail")
    await store.add(entry())
    (one,) = await claim(store, clock.time())
    twice = entry("b@y.example")
    with pytest.raises(Exception, match=r"(?i)unique"):
        await end(store, one, "delivered", births=[twice, twice])
    assert await states(store, one) == ["attempting"]
    assert await store.get(twice.id) is None


async def test_rest_says_who_is_the_last(store, entry, clock):
    await store.add(entry(*(f"{name}@x.example" for name in "abcd")))
    (one,) = await claim(store, clock.time())
    assert (await store.rest(one.id, [0])).open == 3
    await end(store, one, "delivered", 0)
    await end(store, one, "failed", 1, report="no\n")
    await end(store, one, "queued", 2, due=clock.time() + LATER)
    assert (await store.rest(one.id, [3])).open == 1
    await store.hold(Filter(ids=[one.id]))
    rest = await store.rest(one.id, [3])
    assert (rest.open, rest.held, rest.delivered) == (0, 1, 1)
    assert [(failed.number, failed.report) for failed in rest.failures] == [(1, "no\n")]


async def test_failures_that_were_told_are_forgotten(store, entry, clock):
    await store.add(entry("a@x.example", "b@x.example"))
    (one,) = await claim(store, clock.time())
    await end(store, one, "queued", 1, due=clock.time() + LATER)
    await store.hold(Filter(ids=[one.id]))
    failed = replace(one.recipients[0], state="failed")
    await store.finish([Finish(one, [failed], [entry(sender="")], bounced=True)])
    assert await states(store, one) == ["held"]
    (one,) = await store.take(Filter(ids=[one.id]))
    assert list((await store.rest(one.id, [1])).failures) == []
    await end(store, one, "failed")
    assert await store.get(one.id) is None


async def test_an_entry_of_one_recipient_leaves_no_rest(store, entry, clock):
    await store.add(entry())
    (one,) = await claim(store, clock.time())
    rest = await store.rest(one.id, [0])
    assert (rest.open, rest.held, list(rest.failures)) == (0, 0, [])
    await end(store, one, "queued", due=clock.time())
    (one,) = await claim(store, clock.time())
    assert (await store.rest(one.id, [0])).open == 0


async def test_a_claim_is_exclusive(store, entry, clock):
    for i in range(30):
        await store.add(entry(f"a{i}@x.example", f"b{i}@y{i}.example"))
    claims = await asyncio.gather(*(claim(store, clock.time(), limit=7) for _ in range(5)))
    while found := await claim(store, clock.time(), limit=7):
        claims.append(found)
    taken = [(one.id, r.number) for entries in claims for one in entries for r in one.recipients]
    assert len(taken) == len(set(taken)) == 60
    assert all(sum(len(one.recipients) for one in entries) <= 7 for entries in claims)


async def test_claims_go_round_the_lanes(store, entry, clock):
    for _ in range(50):
        await store.add(entry("a@x.example", "b@x.example", sender="bulk@b.example"))
    for i in range(5):
        await store.add(entry("a@x.example", sender=f"one{i}@b.example"))
    found = await claim(store, clock.time(), limit=20, per_lane=10)
    senders = [one.sender for one in found for _ in one.recipients]
    assert {f"one{i}@b.example" for i in range(5)} <= set(senders)
    assert senders.count("bulk@b.example") == 10
    busy = {"bulk@b.example\0x.example": 10}
    assert await claim(store, clock.time(), busy=busy, per_lane=10) == []
    busy = {"bulk@b.example\0x.example": 8}
    again = await claim(store, clock.time(), busy=busy, per_lane=10)
    assert sum(len(one.recipients) for one in again) == 2


async def test_released_claims_are_given_again(store, entry, clock):
    await store.add(entry("a@x.example", "b@x.example"))
    await store.add(entry())
    claimed = await claim(store, clock.time())
    await store.release_claims(claimed)
    again = await claim(store, clock.time())
    assert {one.id for one in again} == {one.id for one in claimed}
    assert [one.attempts for found in again for one in found.recipients] == [0, 0, 0]


async def test_claims_are_given_back_by_open(store, entry, clock):
    await store.add(entry("a@x.example", "b@x.example"))
    await store.add(entry())
    await claim(store, clock.time(), limit=2)
    await store.close()
    await store.open()
    assert sum(len(one.recipients) for one in await claim(store, clock.time())) == 3


async def test_split_numbers_are_never_used_twice(store, entry, clock):
    await store.add(entry("list@x.example"))
    (one,) = await claim(store, clock.time())
    await store.split(one, 0, [EntryRecipient(0, Recipient.of(f"m{i}@y.example")) for i in range(3)])
    (one,) = await claim(store, clock.time())
    assert [r.number for r in one.recipients] == [1, 2, 3]
    await end(store, one, "delivered", 3)
    await store.split(one, 2, [EntryRecipient(0, Recipient.of("n@y.example"))] * 2)
    assert [r.number for r in (await store.get(one.id)).recipients] == [1, 4, 5]
    (more,) = await claim(store, clock.time())
    await end(store, more, "delivered")
    assert (await store.rest(one.id, [1])).open == 0
    await end(store, one, "delivered", 1)
    assert await store.get(one.id) is None


async def test_many_recipients_appear_at_once(store, entry, clock):
    many = entry(*(f"r{i}@x{i % 7}.example" for i in range(3500)))
    adding = asyncio.create_task(store.add(many))
    while not adding.done():
        await asyncio.sleep(0)
        found = await store.list(Filter())
        assert [len(one.recipients) for one in found] in ([], [3500])
        assert sum(len(one.recipients) for one in await claim(store, clock.time(), limit=1)) <= 1
    seen = await claim(store, clock.time(), limit=10_000, per_lane=10_000)
    assert sum(len(one.recipients) for one in seen) >= 3400


async def test_held_time_does_not_age_a_message(store, entry, clock):
    one = entry()
    await store.add(one)
    clock.advance(100)
    assert [held.id for held in await store.hold(Filter())] == [one.id]
    assert await claim(store, clock.time()) == []
    assert await store.next_due() is None
    clock.advance(1000)
    (released,) = await store.release(Filter())
    assert released.birth == one.birth + 1000
    assert [found.birth for found in await claim(store, clock.time())] == [one.birth + 1000]


async def test_an_entry_added_as_held_does_not_age_either(store, entry, clock):
    one = entry(state="held")
    await store.add(one)
    clock.advance(50)
    (released,) = await store.release(Filter())
    assert released.birth == one.birth + 50


async def test_retry_makes_due_now(store, entry, clock):
    one = entry(due=clock.time() + LATER)
    await store.add(one)
    assert await store.next_due() == clock.time() + LATER
    assert await claim(store, clock.time()) == []
    assert [found.id for found in await store.retry(Filter())] == [one.id]
    assert [found.id for found in await claim(store, clock.time())] == [one.id]


async def test_what_is_under_attempt_is_left_alone(store, entry, clock):
    await store.add(entry())
    (one,) = await claim(store, clock.time())
    for operation in ("hold", "retry", "release", "delete", "take"):
        assert await getattr(store, operation)(Filter()) == []
    assert await states(store, one) == ["attempting"]


async def test_delete_forgets_whole_entries(store, entry, clock):
    one, other = entry("a@x.example", "b@y.example"), entry("c@x.example", sender="other@b.example")
    await store.add(one)
    await store.add(other)
    (gone,) = await store.delete(Filter(recipient="b@y.example"))
    assert (gone.id, len(gone.recipients)) == (one.id, 2)
    assert [found.id for found in await store.list(Filter())] == [other.id]
    assert [found.id for found in await claim(store, clock.time())] == [other.id]


FACTS = {
    "a": {"client_ip": "192.0.2.7", "user": "Ann", "message_id": "1@x.example", "subject": "Äpfel [neu] 1*"},
    "b": {"client_ip": "2001:db8::7", "message_id": "2@x.example", "subject": "100% of_it"},
    "c": {},
}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "abc"),
        ({"sender": "s1@remote.example"}, "a"),
        ({"sender": "S1@Remote.example"}, "a"),
        ({"sender": "remote.example"}, ""),
        ({"sender": "*@remote.example"}, "ab"),
        ({"sender": "s?@remote.example"}, "ab"),
        ({"sender": "<>"}, "c"),
        ({"recipient": "y@two.example"}, "b"),
        ({"recipient": "abc-x@one.example"}, "a"),
        ({"recipient": "?@*"}, "abc"),
        ({"domain": "ONE.example"}, "ac"),
        ({"domain": "*.example"}, "abc"),
        ({"domain": "one"}, ""),
        ({"domain": "mx.other.example"}, "b"),
        ({"state": "held"}, "c"),
        ({"state": "queued"}, "ab"),
        ({"born_before": 1_700_000_050.0}, "a"),
        ({"born_after": 1_700_000_100.0}, "bc"),
        ({"domain": "one.example", "state": "queued"}, "a"),
        ({"recipient": "*", "domain": "*", "plugin": "*"}, "bc"),
        ({"client": "192.0.2.7"}, "a"),
        ({"client": "192.0.2.0/24"}, "a"),
        ({"client": "2001:DB8::/32"}, "b"),
        ({"client": "*:*"}, "b"),
        ({"client": "not a net/work"}, ""),
        ({"user": "ann"}, "a"),
        ({"user": "*"}, "a"),
        ({"message_id": "?@x.example"}, "ab"),
        ({"subject": "äpfel [neu] 1*"}, ""),
        ({"subject": "Äpfel [NEU] ??"}, "a"),
        ({"subject": "100% of_it"}, "b"),
        ({"subject": "100%_of_it"}, ""),
        ({"plugin": "remote"}, "b"),
        ({"plugin": "scan*"}, "c"),
        ({"sender": "nobody@x.example"}, ""),
        ({"ids": ["nobody"]}, ""),
    ],
    ids=str,
)
async def test_filters(store, entry, clock, wanted, expected):
    for name, sender, recipient, state in (
        ("a", "s1@remote.example", "x@one.example", "queued"),
        ("b", "s2@remote.example", "y@two.example", "queued"),
        ("c", "", "z@one.example", "held"),
    ):
        one = entry(recipient, sender=sender, state=state, due=clock.time(), facts=FACTS[name], parent=name)
        (kept,) = one.recipients
        if name == "a":
            kept.recipient = kept.recipient.at("abc-x@one.example")
        elif name == "b":
            kept.route = Route("remote", "remote", "mx.other.example")
        else:
            kept.recipient = replace(kept.recipient, held="a virus?", held_by="scanner")
        await store.add(one)
        clock.advance(100)
    found = await store.list(Filter(**wanted))
    assert "".join(sorted(one.parent for one in found)) == expected
    assert all(bytes(one.message) == b"" for one in found)
    # What one matches, it says of itself: so a command can tell what it would do.
    pairs = [(one, r) for one in await store.list(Filter()) for r in one.recipients]
    assert "".join(sorted(one.parent for one, r in pairs if Filter(**wanted).matches(one, r))) == expected
    ids = {one.id for one, _ in pairs}
    assert {one.id for one in await store.list(Filter(ids=ids))} == ids


async def test_a_filter_that_matches_little_goes_through_it_all(store, entry, sqlite_queue, monkeypatch):
    monkeypatch.setattr(sqlite_queue.shard, "WINDOW", 3)
    wanted = []
    for i in range(20):
        one = entry(sender=f"s{i}@x.example")
        wanted += [one.id] if i % 10 == 9 else []
        await store.add(one)
    found = await store.list(Filter(sender="*9@x.example"))
    assert [one.id for one in found] == wanted
    (last,) = await store.list(Filter(sender="*9@x.example"), after=wanted[0], limit=1)
    assert last.id == wanted[1]


async def test_a_redirected_recipient_is_routed_anew(store, entry, clock):
    await store.add(entry("a@x.example", "b@x.example"))
    (one,) = await claim(store, clock.time())
    later = {"due": clock.time() + LATER, "attempts": 2, "report": "no\n", "status": "4.4.1"}
    await end(store, one, "queued", route=Route("remote", "remote", "x.example"), **later)
    await store.hold(Filter(recipient="b@x.example"))
    clock.advance(10)
    changed = await store.redirect(Filter(domain="x.example"), Address("c@y.example"))
    assert [found.id for found in changed] == [one.id]
    first, second = changed[0].recipients
    assert (first.recipient.address, first.recipient.original) == ("c@y.example", "a@x.example")
    assert (first.state, first.route, first.due, first.report) == ("queued", None, clock.time(), "")
    assert (first.number, first.attempts, second.state) == (0, 2, "held")
    (claimed,) = await claim(store, clock.time())
    assert claimed.recipients == [replace(first, state="attempting")]
    assert await store.redirect(Filter(), Address("d@y.example")) != []
    clock.advance(10)
    (released,) = await store.release(Filter())
    assert released.birth == one.birth + 20


async def test_a_rerouted_recipient_begins_where_the_sender_wrote_it(store, entry, clock):
    one = entry("a@x.example", "list@x.example")
    one.recipients[0].recipient = one.recipients[0].recipient.at("abc-a@x.example", claimed="virtual_domains")
    member = replace(one.recipients[1].recipient, address=Address("m@y.example"), expanded=True)
    one.recipients[1].recipient = member
    for kept in one.recipients:
        kept.route = Route("dot_qmail", "local")
    await store.add(one)
    (changed,) = await store.reroute(Filter())
    assert changed.recipients[0].recipient == Recipient.of("a@x.example")
    assert changed.recipients[1].recipient == member
    assert [kept.route for kept in changed.recipients] == [None, None]
    assert [found.id for found in await claim(store, clock.time())] == [one.id]
    assert await store.reroute(Filter()) == []


async def test_a_release_forgets_why_it_was_held(store, entry):
    one = entry(state="held")
    one.recipients[0].recipient = replace(one.recipients[0].recipient, held="a virus?", held_by="scanner")
    await store.add(one)
    (shown,) = await store.list(Filter())
    assert shown.recipients[0].recipient == one.recipients[0].recipient
    (released,) = await store.release(Filter())
    assert released.recipients[0].recipient == Recipient.of("r@local.example")


async def test_suspensions_are_kept(store, clock):
    first = Suspension("x.example", clock.time(), 0.0, "ann", "their disk is full")
    second = Suspension("*.y.example", clock.time(), clock.time() + 60)
    assert [await store.suspend(one) for one in (first, second, second)] == [True, True, False]
    assert await store.suspended() == [second, first]
    await store.close()
    await store.open()
    clock.advance(60)
    assert await store.suspended() == [first]
    assert await store.suspend(replace(first, reason="still")) is True
    assert (await store.resume("x.example")).reason == "still"
    assert await store.resume("x.example") is None
    assert await store.suspended() == []


async def test_lists_are_paged_in_order_of_id(store, entry):
    ids = sorted(new_id() for _ in range(10))
    for id_ in reversed(ids):
        await store.add(entry(id=id_))
    first = await store.list(Filter(), limit=4)
    rest = await store.list(Filter(), after=first[-1].id)
    assert [one.id for one in (*first, *rest)] == ids


async def test_stats(store, entry, clock):
    start = clock.time()
    await store.add(entry("a@x.example", "b@x.example"))
    clock.advance(5 * 60)
    await store.add(entry("c@x.example"))
    await store.add(entry("d@y.example", state="held"))
    clock.advance(1276 * 60)
    await store.add(entry("e@x.example"))
    found = {(row.domain, row.state): row for row in await store.stats()}
    assert found.keys() == {("x.example", "queued"), ("y.example", "held")}
    row = found["x.example", "queued"]
    assert (row.recipients, row.oldest, list(row.ages)) == (4, start, [1, 0, 0, 0, 0, 0, 0, 0, 1, 2])
    (one,) = await claim(store, clock.time(), limit=1)
    await end(store, one, "failed")
    assert sum(row.recipients for row in await store.stats()) == 4


def spooled(store, content):
    spool = Spool(store.spool_folder)
    spool.write(b"Subject: big\n\n" + content)
    return spool.finish()


async def test_big_bodies(store, entry, clock):
    one = entry()
    one.message = spooled(store, BIG)
    one.size = one.message.size
    await store.add(one)
    assert list(store.spool_folder.iterdir()) == []
    (found,) = await claim(store, clock.time())
    assert bytes(found.message) == b"Subject: big\n\n" + BIG
    assert bytes(one.message) == bytes(found.message)
    born = entry("b@y.example")
    born.message = found.message.copy()
    await end(store, found, "delivered", births=[born])
    (forwarded,) = await claim(store, clock.time())
    assert bytes(forwarded.message) == b"Subject: big\n\n" + BIG
    await end(store, forwarded, "delivered")
    if isinstance(forwarded.message.body, FileBody):
        assert not forwarded.message.body.path.exists()


async def test_concurrent_adds_are_all_there(store, entry, clock):
    await asyncio.gather(*(store.add(entry(f"r{i}@x.example")) for i in range(200)))
    found = await claim(store, clock.time())
    assert len({one.id for one in found}) == 200
    await store.finish(
        [Finish(one, [replace(r, state="delivered") for r in one.recipients]) for one in found]
    )
    assert await store.list(Filter()) == []
    assert await store.next_due() is None


async def test_a_restored_entry_is_as_it_was(store, entry, clock):
    one = entry("a@x.example", "b@x.example", "c@x.example", "d@x.example", notes={"site": {"score": 5}})
    first, second, third, fourth = one.recipients
    first.attempts, first.due, first.report = 4, clock.time() + LATER, "busy\n"
    first.route = Route("remote", "remote", "x.example")
    second.state, second.due = "held", clock.time() - 100
    third.state, third.report, third.status = "failed", "no\n", "5.1.1"
    fourth.number = 7
    assert await store.restore(Snapshot(one, 2, 12))
    kept = await store.get(one.id)
    assert kept == replace(one, message=kept.message)
    assert bytes(kept.message) == bytes(one.message)
    rest = await store.rest(one.id, [7])
    assert (rest.open, rest.held, rest.delivered) == (1, 1, 2)
    (released,) = await store.release(Filter(ids=[one.id]))
    assert released.birth == one.birth + 100
    found = await claim(store, clock.time())
    assert [[r.number for r in taken.recipients] for taken in found] == [[1, 7]]
    await store.split(found[0], 7, [EntryRecipient(0, Recipient.of("e@y.example"))])
    assert [r.number for r in (await store.get(one.id)).recipients] == [0, 1, 2, 12]
    await end(store, found[0], "delivered", 1)
    for after in (clock.time(), clock.time() + LATER):
        for taken in await claim(store, after):
            await end(store, taken, "delivered")
    assert await store.get(one.id) is None


async def test_what_is_here_or_has_ended_is_not_restored(store, entry, clock):
    here, ended, deleted, other = (entry() for _ in range(4))
    for one in (here, ended, deleted):
        await store.add(one)
    await store.delete(Filter(ids=[deleted.id]))
    taken = {one.id: one for one in await claim(store, clock.time())}
    await end(store, taken[ended.id], "delivered")
    assert await store.known([one.id for one in (here, ended, deleted, other)]) == {here.id, ended.id}
    assert [await store.restore(Snapshot(one, 0, 1)) for one in (here, ended)] == [False, False]
    assert await store.get(ended.id) is None
    assert await store.restore(Snapshot(deleted, 0, 1))
    clock.advance(7 * 86400.0 + 1)
    assert await store.known([ended.id]) == set()
    assert await store.restore(Snapshot(ended, 0, 1))


async def test_what_has_ended_elsewhere_is_not_restored(store, entry, clock):
    old, new, here = entry(), entry(), entry()
    await store.add(here)
    await store.remember({old.id: clock.time() - 6 * 86400.0, new.id: clock.time()})
    await store.remember({new.id: clock.time() - 86400.0})
    await store.remember({})
    assert await store.known([old.id, new.id, here.id]) == {old.id, new.id, here.id}
    assert not await store.restore(Snapshot(new, 0, 1))
    clock.advance(2 * 86400.0)
    assert await store.known([old.id, new.id]) == {new.id}


async def test_big_and_wide_entries_are_restored(store, entry, clock):
    big, wide = entry(), entry(*(f"r{i}@x{i % 7}.example" for i in range(2500)))
    big.message = spooled(store, BIG)
    assert await store.restore(Snapshot(big, 0, 1))
    assert list(store.spool_folder.iterdir()) == []
    assert bytes((await store.get(big.id)).message) == b"Subject: big\n\n" + BIG
    wide.recipients[0].state = "held"
    assert await store.restore(Snapshot(wide, 0, 2500))
    taken = await claim(store, clock.time(), limit=5000, per_lane=5000)
    assert sorted(len(one.recipients) for one in taken) == [1, 2499]


def snapshots(store):
    found = []
    for view in store.views():
        with view:
            assert view.count() >= 0
            for one in view.snapshots():
                whole = Message.parse(bytes(one.entry.message))
                found.append(replace(one, entry=replace(one.entry, message=whole)))
    return found


async def test_a_view_shows_all_that_is_there(store, entry, clock):
    one, big = entry("a@x.example", "b@x.example", "c@x.example", sender="\udcff@x.example"), entry()
    big.message = spooled(store, BIG)
    await store.add(one)
    await store.add(big)
    (taken,) = [found for found in await claim(store, clock.time()) if found.id == one.id]
    await end(store, taken, "delivered", 0)
    await end(store, taken, "failed", 1, report="no\n")
    shown = {found.entry.id: found for found in snapshots(store)}
    assert bytes(shown[big.id].entry.message) == b"Subject: big\n\n" + BIG
    assert (shown[one.id].delivered, shown[one.id].numbers) == (1, 3)
    assert shown[one.id].entry.sender == one.sender
    assert [(r.number, r.state) for r in shown[one.id].entry.recipients] == [(1, "failed"), (2, "attempting")]
    assert [r.state for r in (await store.get(one.id)).recipients] == ["failed", "attempting"]


async def test_a_view_shows_what_was_born_from_what_ended_meanwhile(store, entry, clock):
    parents = [entry() for _ in range(3)]
    for one in parents:
        await store.add(one)
    (view,) = store.views()
    with view:
        shown = view.snapshots()
        first = next(shown).entry.id
        taken = [one for one in await claim(store, clock.time()) if one.id != first]
        born = [entry(parent=one.id) for one in taken]
        for one, birth in zip(taken, born, strict=True):
            await end(store, one, "delivered", births=[birth])
        assert {one.id for one in born} <= {found.entry.id for found in shown} | {first}
