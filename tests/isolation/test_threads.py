"""`isolation: thread`: what blocks in a plugin blocks nobody else, and what never ends is bounded."""

import asyncio

import pytest

from gateway import Reject, Stages
from gateway.errors import ConfigError
from gateway.isolation import threads
from gateway.testing import Bench, transaction

HEAD = "import threading, time, os\nfrom gateway import Plugin, Reject, hookimpl, events\nclass P(Plugin):\n"


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "state").mkdir()
    return Bench(tmp_path)


def hook(body, name="mail", arguments="transaction"):
    return HEAD + f"    @hookimpl\n    def {name}(self, {arguments}):\n        {body}\n"


async def test_a_thread_answers_and_the_loop_goes_on(bench):
    chain = bench.chain("one: {isolation: thread}", one=hook("time.sleep(0.2); return Reject('5.7.1', 'no')"))
    asked = asyncio.create_task(chain.ask(Stages.mail, transaction()))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert (await asked).value == Reject("5.7.1", "no")
    assert turns > 3


@pytest.mark.parametrize("fault", ["1 / 0", "raise SystemExit(3)", "raise StopIteration", "return 5"])
async def test_a_fault_there_is_a_fault_here(bench, fault):
    chain = bench.chain("one: {isolation: thread}", one=hook(fault))
    answer = await chain.ask(Stages.mail, transaction())
    assert answer.failed
    (told,) = bench.told("plugin.failed")
    assert "Traceback" in told.traceback


async def test_what_never_ends_is_answered_at_its_deadline_and_gives_its_place_to_others(bench, monkeypatch):
    monkeypatch.setattr(threads, "AT_ONCE", 1)
    monkeypatch.setattr(threads, "LEFT", 2)
    body = "\n        ".join(  # noqa: FLY002 - lines of a file
        [
            "flag = self.site.state / 'hang'",
            "if transaction.sender == 'ok@example.com': return Reject('5.7.1', 'no')",
            "while flag.exists(): time.sleep(0.01)",
        ]
    )
    flag = bench.base / "state/hang"
    flag.touch()
    generation = bench.build(bench.write({"one": hook(body)}) or "one: {isolation: thread, deadline: 0.1s}")
    chain, pool = generation.chain, generation.plugins["one"].apart
    for left in (1, 2):
        assert (await chain.ask(Stages.mail, transaction())).failed
        assert pool.left == left
        if left == 1:
            assert (await chain.ask(Stages.mail, transaction("ok@example.com"))).value
    assert [one.NAME for one in bench.emitted] == ["plugin.timed_out"] * 2
    assert (await chain.ask(Stages.mail, transaction("ok@example.com"))).failed
    assert "2 calls have not ended" in bench.told("plugin.failed")[0].error
    flag.unlink()
    while pool.left:  # noqa: ASYNC110 - a thread does it
        await asyncio.sleep(0.01)
    assert (await chain.ask(Stages.mail, transaction("ok@example.com"))).value


async def test_events_of_a_thread_are_told_by_the_loop(bench):
    body = "self.emit(events.PluginLogged(text=str(threading.current_thread() is threading.main_thread())))"
    watch = (
        "from gateway import Plugin, hookimpl\nclass W(Plugin):\n    @hookimpl\n    def event(self, event):\n"
        "        self.site.state.joinpath('seen').write_text(event.text)\n"
    )
    chain = bench.chain("one: {isolation: thread}", one=hook(body), watch=watch)
    await chain.ask(Stages.mail, transaction())
    await asyncio.sleep(0)
    await chain.drain()
    assert (bench.base / "state/seen").read_text() == "False"


@pytest.mark.parametrize(
    ("isolation", "source", "said"),
    [
        (
            "thread",
            HEAD + "    @hookimpl\n    async def mail(self):\n        pass\n",
            "mail takes no isolation: thread",
        ),
        ("thread", hook("pass", "open_queue", ""), "open_queue takes no isolation: thread"),
        ("process", hook("pass", "open_queue", ""), "open_queue takes no isolation: process"),
        ("process", hook("pass", "deliver", "delivery"), "deliver takes no isolation: process"),
    ],
)
def test_what_cannot_be_isolated_is_an_error_with_file_and_line(bench, isolation, source, said):
    with pytest.raises(ConfigError) as error:
        bench.chain(f"one: {{isolation: {isolation}}}", one=source)
    assert f"one.py:4: one: {said}: " in str(error.value)
