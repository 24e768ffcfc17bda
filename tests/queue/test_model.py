"""Whatever the order of its calls, every store does what a model of a few lines does."""

import asyncio
import importlib
import itertools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.message import Message
from gateway.queue import ENDED, Filter, Finish, MemoryQueue

#: An entry of more recipients is stored by SQLite in several transactions.
MANY = 4
FUTURE = 100.0


@dataclass
class Model:
    """An entry as it should be: number -> (state, due, attempts); due counts for those queued."""

    text: bytes
    recipients: dict
    delivered: int = 0
    numbers: int = field(init=False)
    #: Those that were held when they were taken.
    taken: set = field(default_factory=set)

    def __post_init__(self):
        self.numbers = len(self.recipients)

    def of(self, *states):
        return [number for number, (state, *_) in self.recipients.items() if state in states]


class Machine(RuleBasedStateMachine):
    """One store beside the model."""

    make = None

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.folder = Path(tempfile.mkdtemp(prefix="mailward-"))
        self.store = self.make(self.folder / "q", lambda: self.now)
        self.do(self.store.open())
        self.model, self.finished, self.counter = {}, set(), itertools.count()

    def do(self, work):
        return self.loop.run_until_complete(work)

    def teardown(self):
        self.do(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    # What a gateway does.

    def entry(self, states, later):
        count = next(self.counter)
        due = self.now + FUTURE if later else self.now
        recipients = [
            EntryRecipient(number, Recipient.of(Address(f"r@{count % 3}.example")), state, due=due)
            for number, state in enumerate(states)
        ]
        text = b"Subject: %d\n\nbody\n" % count
        return Entry(new_id(), Address("s@x.example"), Message.parse(text), recipients, self.now)

    def learn(self, entry):
        # The due time of one that is held says since when.
        found = {
            one.number: (one.state, self.now if one.state == "held" else one.due, one.attempts)
            for one in entry.recipients
        }
        self.model[entry.id] = Model(bytes(entry.message), found)

    states = st.lists(st.sampled_from(["queued", "queued", "held"]), min_size=1, max_size=MANY + 2)

    @rule(states=states, later=st.booleans())
    def add(self, states, later):
        entry = self.entry(states, later)
        self.learn(entry)
        self.do(self.store.add(entry))

    @rule()
    def claim(self):
        due = {
            (id_, number)
            for id_, model in self.model.items()
            for number in model.of("queued")
            if model.recipients[number][1] <= self.now
        }
        taken = self.do(self.store.claim(self.now, 1000, {}, 1000))
        assert {(entry.id, one.number) for entry in taken for one in entry.recipients} == due
        for entry in taken:
            assert bytes(entry.message) == self.model[entry.id].text
            self.take_over(entry.id, [one.number for one in entry.recipients])

    def move(self, id_, numbers, state, due=None):
        recipients = self.model[id_].recipients
        for number in numbers:
            _, before, attempts = recipients[number]
            recipients[number] = (state, before if due is None else due, attempts)

    def take_over(self, id_, numbers):
        model = self.model[id_]
        model.taken -= set(numbers)
        model.taken |= set(numbers) & set(model.of("held"))
        self.move(id_, numbers, "attempting")

    def back(self, id_, numbers):
        for number in numbers:
            self.move(id_, [number], "held" if number in self.model[id_].taken else "queued")

    def claimed(self):
        return [(id_, number) for id_, model in self.model.items() for number in model.of("attempting")]

    @precondition(claimed)
    @rule(data=st.data())
    def finish(self, data):
        """End some attempts, of several entries, in one call; some give birth."""
        keys = data.draw(st.lists(st.sampled_from(self.claimed()), min_size=1, max_size=5, unique=True))
        finishes = []
        for id_, group in itertools.groupby(sorted(keys), key=lambda key: key[0]):
            finishes.append(self.ended(data, id_, [number for _, number in group]))
        self.do(self.store.finish(finishes))

    def ended(self, data, id_, numbers):
        model, after, births = self.model[id_], [], []
        stored = {one.number: one for one in self.do(self.store.get(id_)).recipients}
        for number in numbers:
            state = data.draw(st.sampled_from(["delivered", "failed", "expired", "queued"]))
            attempts, due = stored[number].attempts + 1, self.now + FUTURE
            after.append(replace(stored[number], state=state, attempts=attempts, due=due))
            model.recipients[number] = (state, due, attempts)
            if state == "delivered" and data.draw(st.booleans()):
                births.append(self.entry(["queued"], later=False))
                self.learn(births[-1])
        rest = self.do(self.store.rest(id_, numbers))
        others = {number: one for number, one in model.recipients.items() if number not in numbers}
        counts = Counter(state for state, *_ in others.values())
        assert (rest.open, rest.held) == (counts["queued"] + counts["attempting"], counts["held"])
        bounced = not rest.open and all(one.state in ENDED for one in after)
        if not rest.open:
            assert len(rest.failures) == counts["failed"] + counts["expired"]
        assert rest.delivered == model.delivered
        self.forget_ended(id_, bounced)
        return Finish(replace(self.do(self.store.get(id_)), recipients=after), after, births, bounced)

    def forget_ended(self, id_, bounced):
        model = self.model[id_]
        delivered = model.of("delivered")
        model.delivered += len(delivered)
        gone = model.of(*ENDED) if bounced else delivered
        if not model.of("queued", "attempting", "held"):
            del self.model[id_]
            self.finished.add(id_)
            return
        for number in gone:
            del model.recipients[number]

    @precondition(claimed)
    @rule(data=st.data(), count=st.integers(2, MANY + 2))
    def split(self, data, count):
        id_, number = data.draw(st.sampled_from(self.claimed()))
        entry, model = self.do(self.store.get(id_)), self.model[id_]
        one = next(one for one in entry.recipients if one.number == number)
        several = [replace(one, state="queued", due=self.now) for _ in range(count)]
        self.do(self.store.split(entry, number, several))
        del model.recipients[number]
        for new in range(model.numbers, model.numbers + count):
            model.recipients[new] = ("queued", self.now, one.attempts)
        model.numbers += count

    @precondition(claimed)
    @rule(data=st.data())
    def give_back(self, data):
        id_, number = data.draw(st.sampled_from(self.claimed()))
        entry = self.do(self.store.get(id_))
        some = [one for one in entry.recipients if one.number == number]
        self.do(self.store.release_claims([replace(entry, recipients=some)]))
        self.back(id_, [number])

    # What a person does, to one entry.

    def queued(self):
        return list(self.model)

    @precondition(queued)
    @rule(data=st.data(), verb=st.sampled_from(["hold", "release", "retry", "delete"]))
    def operate(self, data, verb):
        id_ = data.draw(st.sampled_from(self.queued()))
        model = self.model[id_]
        touched = self.do(getattr(self.store, verb)(Filter(ids=[id_])))
        moved = {"hold": ["queued"], "release": ["held"], "retry": ["queued"]}.get(verb)
        numbers = model.of(*moved) if moved else []
        if verb == "delete" and not model.of("attempting"):
            del self.model[id_]
            assert [entry.id for entry in touched] == [id_]
            return
        assert [entry.id for entry in touched] == [id_] * bool(numbers)
        self.move(id_, numbers, "held" if verb == "hold" else "queued", self.now)

    @precondition(queued)
    @rule(data=st.data())
    def take(self, data):
        id_ = data.draw(st.sampled_from(self.queued()))
        numbers = self.model[id_].of("queued", "held")
        taken = self.do(self.store.take(Filter(ids=[id_])))
        assert [one.number for entry in taken for one in entry.recipients] == numbers
        self.take_over(id_, numbers)

    # What happens around it.

    @rule()
    def time_goes_by(self):
        self.now += FUTURE

    @rule()
    def restart(self):
        self.do(self.store.close())
        self.do(self.store.open())
        for id_, model in self.model.items():
            self.back(id_, model.of("attempting"))

    @invariant()
    def agrees(self):
        found = {entry.id: entry for entry in self.do(self.store.list(Filter(), 1000))}
        assert found.keys() == self.model.keys()
        for id_, model in self.model.items():
            stored = {one.number: one for one in found[id_].recipients}
            assert stored.keys() == model.recipients.keys()
            for number, (state, due, attempts) in model.recipients.items():
                assert (stored[number].state, stored[number].attempts) == (state, attempts)
                assert state != "queued" or stored[number].due == due
            assert bytes(self.do(self.store.get(id_)).message) == model.text
        assert self.finished <= self.do(self.store.known(self.finished))


#: A database over a socket takes longer.
EXAMPLES = {"memory": 10, "sqlite": 6, "postgres": 1}
#: Steps of an example, in a short look and in a long one.
FEW, STEPS = 10, 30


def check(make, examples, steps):
    machine = type("Machine", (Machine,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.fixture(params=EXAMPLES)
def make(request, monkeypatch):
    """Give `make(folder, now)`: an empty store of each kind, not yet open."""
    if request.param == "memory":
        return lambda _folder, now: MemoryQueue(now)
    if request.param == "sqlite":
        module = request.getfixturevalue("sqlite_queue")
        monkeypatch.setattr(importlib.import_module("queue_tests_sqlite_queue.store"), "BATCH", MANY)
        return module.SqliteQueue
    return request.getfixturevalue("postgres_store")


def test_a_store_agrees_with_the_model(make, request):
    check(make, EXAMPLES[request.node.callspec.params["make"]], FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_store_agrees_with_the_model_for_long(make, request):
    check(make, 50 * EXAMPLES[request.node.callspec.params["make"]], STEPS)
