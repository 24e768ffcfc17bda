"""What the dispatcher makes of the answers of plugins, with a real store and a real chain."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest

from gateway.address import Address
from gateway.chain import Chain, Step
from gateway.decision import Accept, Defer, Reject
from gateway.envelope import Birth, Entry, EntryRecipient, Outcome, Route, new_id
from gateway.errors import JournalError, QueueFull
from gateway.hookspecs import SPECS
from gateway.message import Message
from gateway.plugin import Site
from gateway.queue import Dispatcher, Filter, MemoryQueue, Suspension

LOCAL = Route("box", "local")


class Rig:
    """A dispatcher over a memory store; the stages answer with the functions of `hooks`."""

    def __init__(self, clock, tmp_path):
        self.clock = clock
        self.store = MemoryQueue(clock.time)
        self.emitted, self.log, self.deliveries = [], [], []
        self.decision = Accept()
        self.hooks = {"route": lambda *_: LOCAL, "deliver": self.deliver}
        self.answers = {}
        self.concurrency = SimpleNamespace(local=20, remote=20, per_destination=10)
        self.settings = SimpleNamespace(concurrency=self.concurrency, lifetime=1000.0, delay_warning=100.0)
        self.journal = SimpleNamespace(flush=self.flush)
        site = Site("mx.example", "postmaster@mx.example", tmp_path, tmp_path, 1000.0)
        services = SimpleNamespace(clock=clock)
        self.dispatcher = Dispatcher(
            self.store, lambda: self.chain, self.journal, services, lambda: self.settings, self.admit, site
        )
        finish = self.store.finish

        async def logged(finishes):
            self.log.append("finish")
            await finish(finishes)

        self.store.finish = logged

    @property
    def chain(self):
        steps = {name: [Step("box", call, 30.0, False, False, False)] for name, call in self.hooks.items()}
        return Chain(SPECS, steps, self.emit)

    def emit(self, event):
        self.emitted.append(event)
        self.log.append(event.NAME)

    async def flush(self):
        self.log.append("flush")

    async def deliver(self, delivery):
        self.deliveries.append(delivery)
        return [self.answer(one) for one in delivery.recipients]

    def answer(self, one):
        result, *more = self.answers.get(one.recipient.address, ["delivered"])
        return Outcome(one.number, result, *more)

    async def admit(self, transaction, message):
        if not isinstance(self.decision, Accept):
            return None, self.decision
        recipients = [EntryRecipient(i, one, "held") for i, one in enumerate(transaction.recipients)]
        now = self.clock.time()
        born = Entry(
            transaction.id,
            transaction.sender,
            message,
            recipients,
            now,
            transaction.origin,
            transaction.parent,
        )
        return born, Accept()

    async def run(self, *entries, until=None):
        """Add entries and let the dispatcher work until it has nothing more to do."""
        for entry in entries:
            await self.store.add(entry)
        await self.dispatcher.start()
        await self.idle(until)
        await self.dispatcher.stop(1)

    async def idle(self, until=None):
        async with asyncio.timeout(5):
            for _ in range(20):
                await asyncio.sleep(0)
            while self.dispatcher._held if until is None else not until():  # noqa: ASYNC110 - no event says "idle"
                await asyncio.sleep(0)

    def told(self, name):
        return [event for event in self.emitted if name == event.NAME]

    async def born(self):
        return [await self.store.get(one.id) for one in await self.store.list(Filter(state="held"))]


@pytest.fixture
async def rig(clock, tmp_path):
    made = Rig(clock, tmp_path)
    await made.store.open()
    yield made
    await made.store.close()


async def test_the_journal_is_safe_before_the_queue_forgets(rig, entry):
    one = entry()
    await rig.run(one)
    assert await rig.store.get(one.id) is None
    assert rig.log.index("delivery.delivered") < rig.log.index("flush") < rig.log.index("finish")
    assert rig.log.index("message.finished") < rig.log.index("finish")
    (started,), (finished,) = rig.told("delivery.started"), rig.told("message.finished")
    assert (started.recipient, started.attempt) == ("r@local.example", 1)
    assert (finished.delivered, finished.failed) == (1, 0)


async def test_deferred_mail_is_tried_again_when_retry_says(rig, entry, clock):
    rig.answers["r@local.example"] = ["deferred", "not now\n", "4.2.1"]
    rig.hooks["retry"] = lambda _delivery, _outcome: clock.time() + 400
    one = entry()
    await rig.run(one)
    (kept,) = (await rig.store.get(one.id)).recipients
    assert (kept.state, kept.due, kept.attempts, kept.report) == (
        "queued",
        clock.time() + 400,
        1,
        "not now\n",
    )
    assert rig.told("delivery.deferred")[0].next == clock.time() + 400
    assert kept.route == LOCAL


@pytest.mark.parametrize("answer", [None, float("nan"), float("inf")])
async def test_an_hour_when_retry_says_nothing_of_use(rig, entry, clock, answer):
    rig.answers["r@local.example"] = ["deferred"]
    rig.hooks["retry"] = lambda _delivery, _outcome: answer
    await rig.run(entry())
    assert await rig.store.next_due() == clock.time() + 3600


async def test_a_due_time_in_the_past_does_not_spin(rig, entry):
    rig.answers["r@local.example"] = ["deferred"]
    rig.hooks["retry"] = lambda _delivery, _outcome: 0.0
    await rig.run(entry())
    assert len(rig.deliveries) == 1


async def test_no_route_defers_loudly_and_routes_again(rig, entry):
    rig.hooks["route"] = lambda *_: None
    one = entry()
    await rig.run(one)
    (kept,) = (await rig.store.get(one.id)).recipients
    assert (kept.state, kept.route, rig.told("delivery.deferred")[0].reason) == ("queued", None, "no_route")


def raises(_delivery):
    raise RuntimeError("the secret of the plugin")


@pytest.mark.parametrize(
    "deliver",
    [
        raises,
        lambda _delivery: None,
        lambda _delivery: [],
        lambda _delivery: "delivered",
        lambda _delivery: [Outcome(0, "delivered"), Outcome(7, "delivered")],
        lambda _delivery: [Outcome(0, "delivered"), Outcome(0, "failed")],
        lambda _delivery: [Outcome(9, "delivered")],
    ],
)
async def test_a_deliver_plugin_that_is_broken_defers(rig, entry, deliver):
    rig.hooks["deliver"] = deliver
    one = entry()
    await rig.run(one)
    (kept,) = (await rig.store.get(one.id)).recipients
    assert (kept.state, kept.attempts) == ("queued", 1)
    assert "secret" not in kept.report
    assert len(rig.told("delivery.deferred")) == 1


async def test_a_route_to_no_plugin_defers(rig, entry):
    rig.hooks["route"] = lambda *_: Route("missing", "local")
    one = entry()
    await rig.run(one)
    assert (await rig.store.get(one.id)).recipients[0].state == "queued"


async def test_failures_become_one_bounce_in_the_last_transaction(rig, entry):
    rig.answers.update({"a@x.example": ["failed", "no such user\n"], "c@x.example": ["failed", "gone\n"]})
    one = entry("a@x.example", "b@x.example", "c@x.example")
    await rig.run(one)
    (bounce,) = await rig.born()
    assert (bounce.sender, bounce.parent, bounce.origin) == ("", one.id, "bounce")
    assert bounce.recipients[0].recipient.address == "s@remote.example"
    assert b"a@x.example: no such user" in bytes(bounce.message)
    assert b"c@x.example: gone" in bytes(bounce.message)
    assert await rig.store.get(one.id) is None
    (told,) = rig.told("message.bounced")
    assert (told.bounce, sorted(told.recipients)) == (bounce.id, ["a@x.example", "c@x.example"])
    assert [accepted.message for accepted in rig.told("message.accepted")] == [bounce.id]
    assert (rig.told("message.finished")[0].delivered, rig.told("message.finished")[0].failed) == (1, 2)


async def test_no_bounce_while_a_recipient_is_open(rig, entry):
    rig.answers.update({"a@x.example": ["failed", "no\n"], "b@x.example": ["deferred", "later\n"]})
    one = entry("a@x.example", "b@x.example")
    await rig.run(one)
    assert await rig.born() == []
    assert [r.state for r in (await rig.store.get(one.id)).recipients] == ["failed", "queued"]


async def test_held_recipients_do_not_delay_the_bounce_of_others(rig, entry):
    rig.answers["a@x.example"] = ["failed", "no\n"]
    one = entry("a@x.example", "b@x.example")
    one.recipients[1].state = "held"
    await rig.run(one)
    born = [found for found in await rig.born() if found.id != one.id]
    assert len(born) == 1
    assert [r.state for r in (await rig.store.get(one.id)).recipients] == ["held"]
    assert rig.told("message.finished") == []


async def test_a_bounce_does_not_wait_for_what_is_held_later(rig, entry):
    rig.answers["a@local.example"] = ["failed", "no\n", "5.1.1"]
    rig.answers["b@local.example"] = ["deferred", "not now\n"]
    one = entry("a@local.example", "b@local.example")
    await rig.run(one)
    assert not await rig.born()
    await rig.store.hold(Filter(ids=[one.id]))
    await rig.dispatcher.settle(one.id)
    await rig.dispatcher.settle(one.id)
    (bounced,) = rig.told("message.bounced")
    assert bounced.recipients == ("a@local.example",)
    kept = await rig.store.get(one.id)
    assert [row.state for row in kept.recipients] == ["held"]


async def test_a_bounce_that_fails_is_a_double_bounce(rig, entry):
    rig.answers["r@local.example"] = ["failed", "no\n"]
    await rig.run(entry(sender=""))
    (bounce,) = await rig.born()
    assert (bounce.sender, bounce.recipients[0].recipient.address) == ("#@[]", "postmaster@mx.example")


async def test_there_is_never_a_third_bounce(rig, entry):
    rig.answers["r@local.example"] = ["failed", "no\n"]
    one = entry(sender="#@[]")
    await rig.run(one)
    assert await rig.store.list(Filter()) == []
    (told,) = rig.told("message.bounced")
    assert (told.reason, told.bounce) == ("triple_bounce", "")


async def test_a_bounce_plugin_that_fails_does_not_lose_the_bounce(rig, entry):
    rig.answers["r@local.example"] = ["failed", "no\n"]
    rig.hooks["bounce"] = lambda _entry, _failures: raises(None)
    await rig.run(entry())
    assert len(await rig.born()) == 1


async def test_the_last_try_is_after_the_lifetime(rig, entry, clock):
    rig.answers["r@local.example"] = ["deferred", "still no", "4.4.1"]
    one = entry()
    clock.advance(1000)
    await rig.run(one)
    assert (await rig.store.get(one.id)).recipients[0].state == "queued"


async def test_older_than_the_lifetime_expires(rig, entry, clock):
    rig.answers["r@local.example"] = ["deferred", "still no", "4.4.1"]
    one = entry()
    clock.advance(1001)
    await rig.run(one)
    assert await rig.store.get(one.id) is None
    (expired,), (bounce,) = rig.told("message.expired"), await rig.born()
    assert expired.seconds == 1001
    assert b"still no" in bytes(bounce.message)


async def test_old_mail_is_delivered_all_the_same(rig, entry, clock):
    one = entry()
    clock.advance(5000)
    await rig.run(one)
    assert len(rig.told("delivery.delivered")) == 1


async def test_births_of_a_delivery_are_stored_with_it(rig, entry):
    birth = Birth(Address("s@remote.example"), (Address("f@y.example"),), Message(b"A: b\n"), "forward")
    rig.hooks["deliver"] = lambda _delivery: [Outcome(0, "delivered", births=(birth,))]
    one = entry()
    await rig.run(one)
    (born,) = await rig.born()
    assert (born.parent, born.origin, born.recipients[0].recipient.address) == (
        one.id,
        "forward",
        "f@y.example",
    )


@pytest.mark.parametrize(
    ("decision", "left"), [(Reject("5.7.1", "no"), 0), (Defer("4.7.1", "later"), 1)], ids=["reject", "defer"]
)
async def test_births_that_are_refused(rig, entry, decision, left):
    birth = Birth(Address(""), (Address("f@y.example"),), Message(b"A: b\n"), "forward")
    rig.hooks["deliver"] = lambda _delivery: [Outcome(0, "delivered", births=(birth,))]
    rig.decision = decision
    await rig.run(entry(sender="#@[]"))
    assert len(await rig.store.list(Filter())) == left
    assert rig.told("delivery.delivered") == []
    assert len(rig.told("delivery.deferred" if left else "delivery.failed")) == 1


async def test_remote_recipients_share_a_delivery(rig, entry):
    rig.hooks["route"] = lambda recipient, _: Route("box", "remote", recipient.address.domain)
    await rig.run(entry(*(f"r{i}@x.example" for i in range(150)), "other@y.example"))
    groups = sorted(len(delivery.recipients) for delivery in rig.deliveries)
    assert sum(groups) == 151
    assert max(groups) <= 100
    assert len(groups) <= 5


async def test_local_recipients_are_delivered_one_by_one(rig, entry):
    await rig.run(entry("a@x.example", "b@x.example"))
    assert [len(delivery.recipients) for delivery in rig.deliveries] == [1, 1]


async def test_verp_gives_each_recipient_its_sender(rig, entry):
    rig.hooks["rewrite"] = lambda recipient: recipient.at(f"abc-{recipient.address}")
    asked = []
    rig.hooks["route"] = lambda _, sender: asked.append(sender) or Route("box", "remote", "x.example")
    await rig.run(entry("a@x.example", "b@x.example", sender="list-@host.example-@[]"))
    found = sorted(delivery.sender for delivery in rig.deliveries)
    assert found == ["list-abc-a=x.example@host.example", "list-abc-b=x.example@host.example"]
    assert asked == found


async def test_outgoing_edits_a_copy(rig, entry):
    def edit(_delivery, message):
        message.prepend("X-Copy", "1")
        return message

    rig.hooks["outgoing"] = edit
    rig.answers["r@local.example"] = ["deferred"]
    one = entry()
    await rig.run(one)
    assert rig.deliveries[0].entry.message.values("X-Copy") == ["1"]
    assert (await rig.store.get(one.id)).message.values("X-Copy") == []


async def test_a_fan_out_is_stored_before_the_first_attempt(rig, entry):
    def rewrite(recipient):
        if recipient.address != "all@x.example":
            return None
        return [
            recipient.at("a@x.example", claimed="aliases"),
            recipient.at("b@x.example", claimed="aliases"),
        ]

    stored = []

    async def deliver(delivery):
        kept = await rig.store.get(delivery.entry.id)
        stored.append(sorted(one.recipient.address for one in kept.recipients))
        return await rig.deliver(delivery)

    rig.hooks.update(rewrite=rewrite, deliver=deliver)
    one = entry("all@x.example")
    await rig.run(one, until=lambda: rig.told("message.finished"))
    assert stored[0] == ["a@x.example", "b@x.example"]
    assert sorted(d.recipients[0].recipient.address for d in rig.deliveries) == ["a@x.example", "b@x.example"]
    assert rig.told("recipient.rewritten")[0].to == ("a@x.example", "b@x.example")
    assert rig.told("message.finished")[0].delivered == 2


async def test_routed_once(rig, entry, clock):
    asked = []
    rig.hooks["route"] = lambda recipient, _: asked.append(recipient) or LOCAL
    rig.answers["r@local.example"] = ["deferred"]
    rig.hooks["retry"] = lambda _delivery, _outcome: clock.time() + 2
    await rig.store.add(entry())
    await rig.dispatcher.start()
    await rig.idle()
    clock.advance(10)
    rig.dispatcher.wake()
    await rig.idle(lambda: len(rig.deliveries) == 2)
    await rig.dispatcher.stop(1)
    assert len(asked) == 1
    assert [delivery.attempt for delivery in rig.deliveries] == [1, 2]


async def test_concurrency_is_bounded(rig, entry):
    rig.concurrency.remote, rig.concurrency.per_destination = 5, 2
    rig.hooks["route"] = lambda recipient, _: Route("box", "remote", recipient.address.domain)
    running, most, gate = [], [], asyncio.Event()

    async def deliver(delivery):
        running.append(delivery.route.destination)
        most.append((len(running), max(running.count(one) for one in running)))
        await gate.wait()
        running.remove(delivery.route.destination)
        return [Outcome(one.number, "delivered") for one in delivery.recipients]

    rig.hooks["deliver"] = deliver
    entries = [entry(f"r@x{i % 4}.example", sender=f"s{i}@b.example") for i in range(20)]
    for one in entries:
        await rig.store.add(one)
    await rig.dispatcher.start()
    await rig.idle(lambda: len(running) == 5)
    gate.set()
    await rig.idle(lambda: len(rig.told("message.finished")) == 20)
    await rig.dispatcher.stop(1)
    assert max(total for total, _ in most) == 5
    assert max(one for _, one in most) == 2


async def test_slots_count_by_the_sender_where_its_route_says_so(rig, entry):
    """Mail of one sender to many domains leaves by one host."""
    rig.concurrency.per_destination = 2
    rig.hooks["route"] = lambda _, sender: Route("box", "remote", f"smart.{sender.domain}")
    running, most, gate = Counter(), Counter(), asyncio.Event()

    async def deliver(delivery):
        name = delivery.route.destination
        running[name] += 1
        most[name] = max(most[name], running[name])
        await gate.wait()
        running[name] -= 1
        return [Outcome(one.number, "delivered") for one in delivery.recipients]

    rig.hooks["deliver"] = deliver
    for number in range(10):
        await rig.store.add(entry(f"r@x{number}.example", sender=f"s@{'ab'[number % 2]}.example"))
    await rig.dispatcher.start()
    await rig.idle(lambda: running.total() == 4)
    gate.set()
    await rig.idle(lambda: len(rig.told("message.finished")) == 10)
    await rig.dispatcher.stop(1)
    assert most == {"smart.a.example": 2, "smart.b.example": 2}


async def test_a_flood_does_not_delay_another_sender(rig, entry):
    rig.concurrency.local = 2
    order = []

    async def deliver(delivery):
        order.append(delivery.sender)
        await asyncio.sleep(0)
        return [Outcome(one.number, "delivered") for one in delivery.recipients]

    rig.hooks["deliver"] = deliver
    flood = [entry(f"r{i}@x.example", sender="bulk@b.example") for i in range(500)]
    await rig.run(*flood, entry(sender="one@b.example"), until=lambda: "one@b.example" in order)
    assert order.index("one@b.example") < 10


async def test_stop_waits_for_what_is_under_way(rig, entry):
    gate = asyncio.Event()

    async def deliver(delivery):
        await gate.wait()
        return [Outcome(one.number, "delivered") for one in delivery.recipients]

    rig.hooks["deliver"] = deliver
    one = entry()
    await rig.store.add(one)
    await rig.dispatcher.start()
    await rig.idle(lambda: rig.told("delivery.started"))
    stopping = asyncio.create_task(rig.dispatcher.stop(5))
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert await rig.store.get(one.id) is None


async def test_stop_gives_back_what_takes_too_long(rig, entry):
    async def deliver(_delivery):
        await asyncio.Event().wait()

    rig.hooks["deliver"] = deliver
    rig.concurrency.local = 1
    under_way, waiting = entry(), entry(sender="x@y.example")
    await rig.store.add(under_way)
    await rig.store.add(waiting)
    await rig.dispatcher.start()
    await rig.idle(lambda: rig.told("delivery.started"))
    await rig.dispatcher.stop(0.01)
    for one in (under_way, waiting):
        (kept,) = (await rig.store.get(one.id)).recipients
        assert (kept.state, kept.attempts) == ("queued", 0)


@pytest.mark.parametrize("error", [QueueFull("full"), JournalError("full")], ids=["queue", "journal"])
async def test_a_full_disk_repeats_the_storing_and_not_the_delivery(rig, entry, monkeypatch, error):
    monkeypatch.setattr("gateway.queue.ending.PAUSE", 0.01)
    failures = [error, error]
    work = rig.store.finish if isinstance(error, QueueFull) else rig.flush

    async def failing(*args):
        if failures:
            raise failures.pop()
        return await work(*args)

    if isinstance(error, QueueFull):
        rig.store.finish = failing
    else:
        rig.journal.flush = failing
    one = entry()
    await rig.run(one)
    assert len(rig.deliveries) == 1
    assert len(rig.told("queue.failed")) == 2
    assert await rig.store.get(one.id) is None


async def test_a_person_gives_mail_up(rig, entry, clock):
    one = entry("a@x.example", "b@x.example", due=clock.time() + 500)
    one.recipients[1].state = "held"
    await rig.store.add(one)
    await rig.dispatcher.start()
    (given_up,) = await rig.dispatcher.bounce(Filter(ids=[one.id]), actor="root")
    await rig.dispatcher.stop(1)
    assert given_up.id == one.id
    (bounce,) = await rig.born()
    assert bounce.parent == one.id
    assert (rig.told("message.bounced")[0].actor, rig.deliveries) == ("root", [])
    assert await rig.store.get(one.id) is None


async def test_two_attempts_of_one_entry_give_one_bounce(rig, entry):
    """Both end at one time; exactly one of them is the last."""
    rig.answers.update({f"r{i}@x.example": ["failed", f"no {i}\n"] for i in range(10)})
    one = entry(*(f"r{i}@x.example" for i in range(10)))
    await rig.run(one)
    (bounce,) = await rig.born()
    assert all(f"no {i}".encode() in bytes(bounce.message) for i in range(10))
    assert len(rig.told("message.finished")) == 1


async def test_ids_of_fates_do_not_change_when_repeated(rig, entry):
    one = entry(id=new_id())
    await rig.run(one)
    (told,) = rig.told("delivery.delivered")
    assert told.identity() == told.identity()
    assert told.message == one.id


async def test_attempts_of_one_entry_that_end_meanwhile_are_stored_together(rig, entry):
    """A post to many costs few flushes: what ends while a flush goes on shares the next."""
    gate = asyncio.Event()
    flush = rig.journal.flush

    async def slow():
        await gate.wait()
        await flush()

    rig.journal.flush = slow
    rig.concurrency.local = 20
    one = entry(*(f"r{number}@local.example" for number in range(40)))
    await rig.store.add(one)
    await rig.dispatcher.start()
    await rig.idle(lambda: len(rig.deliveries) == 40)
    gate.set()
    await rig.idle()
    await rig.dispatcher.stop(1)
    assert rig.log.count("finish") == rig.log.count("flush") < 5
    (finished,) = rig.told("message.finished")
    assert (finished.delivered, len(rig.told("delivery.delivered"))) == (40, 40)
    assert await rig.store.get(one.id) is None


async def test_what_cannot_be_stored_at_the_end_is_given_back_for_all(rig, entry):
    """When the gateway stops with a broken disk, no attempt of an entry waits for ever for another's end."""

    async def failing():
        raise JournalError("full")

    rig.journal.flush = failing
    one = entry(*(f"r{number}@local.example" for number in range(5)))
    await rig.store.add(one)
    await rig.dispatcher.start()
    await rig.idle(lambda: rig.told("queue.failed"))
    await rig.dispatcher.stop(1)
    kept = (await rig.store.get(one.id)).recipients
    assert [recipient.state for recipient in kept] == ["queued"] * 5


async def test_mail_for_a_suspended_destination_waits_without_an_attempt(rig, entry, clock):
    await rig.store.suspend(Suspension("*.one.example", clock.time(), reason="their disk is full"))
    one = entry("a@mx.one.example", "b@two.example")
    await rig.run(one)
    assert [found.recipients[0].recipient.address for found in rig.deliveries] == ["b@two.example"]
    (kept,) = (await rig.store.get(one.id)).recipients
    assert (kept.state, kept.attempts, kept.due) == ("queued", 0, clock.time() + 3600)
    assert [event.recipient for event in rig.told("delivery.started")] == ["b@two.example"]


async def test_a_suspension_ends_by_itself(rig, entry, clock):
    await rig.store.suspend(Suspension("one.example", clock.time(), clock.time() + 60))
    one = entry("a@one.example")
    await rig.run(one)
    assert (await rig.store.get(one.id)).recipients[0].due == clock.time() + 60
    clock.advance(60)
    rig.dispatcher.wake()
    assert [found.id for found in await rig.store.claim(clock.time(), 1, {}, 1)] == [one.id]


async def test_what_waited_too_long_for_its_destination_has_a_last_try(rig, entry, clock):
    await rig.store.suspend(Suspension("relay.example", clock.time()))
    rig.hooks["route"] = lambda *_: Route("box", "remote", "relay.example")
    one = entry("a@one.example")
    await rig.store.add(one)
    await rig.dispatcher.start()
    await rig.idle(lambda: "finish" in rig.log)
    clock.advance(rig.settings.lifetime + 1)
    assert await rig.store.get(one.id)
    await rig.store.resume("relay.example")
    await rig.store.retry(Filter(domain="relay.example"))
    rig.dispatcher.wake()
    await rig.idle(lambda: rig.deliveries)
    await rig.dispatcher.stop(1)
    assert await rig.store.get(one.id) is None


async def test_who_waits_for_a_slot_learns_that_its_destination_is_suspended(rig, entry, clock):
    rig.concurrency.local = 1
    going = asyncio.Event()

    async def deliver(delivery):
        rig.deliveries.append(delivery)
        await going.wait()
        return [Outcome(one.number, "delivered") for one in delivery.recipients]

    rig.hooks["deliver"] = deliver
    for name in "ab":
        await rig.store.add(entry(f"{name}@one.example"))
    await rig.dispatcher.start()
    await rig.idle(lambda: rig.deliveries)
    await rig.store.suspend(Suspension("one.example", clock.time()))
    clock.advance(1)
    going.set()
    await rig.idle()
    await rig.dispatcher.stop(1)
    assert len(rig.deliveries) == 1
    assert [one.attempts for found in await rig.store.list(Filter()) for one in found.recipients] == [0]


async def test_reroute_does_not_expand_an_alias_twice(rig, entry):
    rig.hooks["rewrite"] = lambda recipient: [recipient.at("a@x.example"), recipient.at("b@x.example")]
    rig.answers |= {"a@x.example": ["delivered"], "b@x.example": ["deferred", "later\n"]}
    one = entry("list@x.example")
    await rig.run(one)
    rig.hooks["route"] = lambda *_: Route("box", "remote", "elsewhere.example")
    assert await rig.store.reroute(Filter())
    (claimed,) = await rig.store.claim(rig.clock.time(), 10, {}, 10)
    await rig.dispatcher._route(claimed)
    (kept,) = claimed.recipients
    assert (kept.recipient.address, kept.recipient.original) == ("b@x.example", "list@x.example")
    assert kept.route.destination == "elsewhere.example"


async def test_a_redirected_recipient_is_rewritten_and_its_bounce_names_the_first(rig, entry):
    named = []
    rig.hooks["rewrite"] = lambda recipient: recipient.at(f"abc-{recipient.address}", claimed="box")
    rig.hooks["bounce"] = lambda _entry, failures: named.extend(failures)
    rig.answers["abc-new@y.example"] = ["failed", "nobody\n"]
    one = entry("old@x.example")
    await rig.store.add(one)
    await rig.store.redirect(Filter(), Address("new@y.example"))
    await rig.run()
    assert [delivery.recipients[0].recipient.address for delivery in rig.deliveries] == ["abc-new@y.example"]
    assert [failure.recipient.original for failure in named] == ["old@x.example"]


async def test_what_comes_due_while_the_store_is_asked_is_tried_at_once(rig, entry, clock):
    """Between a claim that gives nothing and the look at what is due next, time goes on."""
    one = entry()
    one.recipients[0].due = clock.time() + 1
    asked = rig.store.next_due

    async def slowly():
        due = await asked()
        clock.advance(2)
        return due

    rig.store.next_due = slowly
    await rig.run(one, until=lambda: rig.told("message.finished"))
    assert len(rig.deliveries) == 1
