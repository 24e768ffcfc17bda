"""How the plugins of one stage are asked: order, deadlines, faults, edits. Every trap that was measured."""

import asyncio

import pytest

from gateway import Accept, Address, Defer, Message, Recipient, Reject, Stages
from gateway.testing import Bench, transaction

HEAD = """
import asyncio
from gateway import *
from gateway import Plugin, hookimpl, Accept, Reject, Defer, Discard, Hold, Recipient
class P(Plugin):
"""


def plugin(body: str) -> str:
    """Write a plugin of one or more hooks; the body is indented by four."""
    lines = ["    " + line if line else "" for line in body.strip("\n").split("\n")]
    return HEAD.replace("from gateway import *\n", "") + "\n".join(lines) + "\n"


def says(hook: str, answer: str, *, arguments: str = "", is_async: bool = False) -> str:
    kind = "async def" if is_async else "def"
    return plugin(f"@hookimpl\n{kind} {hook}(self{arguments}):\n    return {answer}")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def ask_mail(chain):
    return await chain.ask(Stages.mail, transaction())


async def test_silence_is_no_opinion(bench):
    chain = bench.chain(quiet=says("mail", "None"))
    assert (await ask_mail(chain)).value is None


@pytest.mark.parametrize("is_async", [False, True])
async def test_the_first_opinion_ends_the_stage_and_is_named(bench, is_async):
    chain = bench.chain(
        a_silent=says("mail", "None", is_async=True),
        b_first=says("mail", 'Reject("5.7.1", "b")', is_async=is_async),
        c_late=says("mail", "Accept()"),
    )
    answer = await ask_mail(chain)
    assert (answer.value, answer.plugin) == (Reject("5.7.1", "b"), "b_first")


async def test_order_is_by_stem_and_not_by_file_system_and_yaml_changes_it(bench):
    bench.write(
        {"z_one": says("mail", 'Reject("5.7.1", "z")'), "a_two": says("mail", 'Reject("5.7.1", "a")')}
    )
    assert (await ask_mail(bench.build().chain)).plugin == "a_two"
    assert (await ask_mail(bench.build("z_one: {before: [a_two]}").chain)).plugin == "z_one"
    assert (await ask_mail(bench.build("a_two: {after: [z_one]}").chain)).plugin == "z_one"


async def test_any_subset_of_arguments(bench):
    chain = bench.chain(
        only=plugin(
            "@hookimpl\ndef rcpt(self, recipient):\n    return Reject('5.7.1', recipient.address)\n"
            "@hookimpl\ndef helo(self, name, session):\n    return Reject('5.7.1', name + session.client.ip)"
        )
    )
    answer = await chain.ask(Stages.rcpt, transaction(), Recipient.of("a@b"))
    assert answer.value == Reject("5.7.1", "a@b")
    answer = await chain.ask(Stages.helo, transaction().session, "me ")
    assert answer.value == Reject("5.7.1", "me 192.0.2.7")


FAULTS = {
    "raises": "raise RuntimeError('db password=hunter2')",
    "exits": "raise SystemExit(3)",
    "junk": "return '250 OK'",
    "wrong decision": "return Discard('x')",
    "bad status": "return Reject('4.7.1', 'x')",
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_defers_and_is_an_event_with_a_traceback(bench, fault, is_async):
    kind = "async def" if is_async else "def"
    hook = plugin(f"@hookimpl\n{kind} connect(self, session):\n    {FAULTS[fault]}")
    chain = bench.chain(bad=hook, good=says("connect", "Accept()"))
    answer = await chain.ask(Stages.connect, transaction().session)
    assert isinstance(answer.value, Defer)
    assert answer.value.status == "4.3.0"
    assert "hunter2" not in answer.value.text
    assert answer.failed
    (event,) = bench.told("plugin.failed")
    assert (event.plugin, event.stage) == ("bad", "connect")
    assert "Traceback" in event.traceback


async def test_on_error_skip_goes_on_with_the_next_plugin(bench):
    chain = bench.chain(
        "bad: {on_error: skip}",
        bad=plugin("@hookimpl\ndef mail(self):\n    1 / 0"),
        good=says("mail", "Accept()"),
    )
    assert (await ask_mail(chain)).value == Accept()
    assert bench.told("plugin.failed")


async def test_a_cancellation_that_the_plugin_raises_itself_is_a_fault(bench):
    chain = bench.chain(bad=plugin("@hookimpl\nasync def mail(self):\n    raise asyncio.CancelledError"))
    assert (await ask_mail(chain)).failed


async def test_deadline_cancels_a_waiting_plugin(bench):
    chain = bench.chain(
        "slow: {deadline: 0.05s}",
        slow=plugin("@hookimpl\nasync def mail(self):\n    await asyncio.sleep(60)"),
    )
    answer = await ask_mail(chain)
    assert answer.failed
    (event,) = bench.told("plugin.timed_out")
    assert (event.plugin, event.stage) == ("slow", "mail")


async def test_a_plugin_that_swallows_its_cancellation_is_too_late_all_the_same(bench):
    body = """
@hookimpl
async def mail(self):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        pass
    return Accept()
"""
    chain = bench.chain("slow: {deadline: 0.05s}", slow=plugin(body))
    assert (await ask_mail(chain)).failed
    assert asyncio.current_task().cancelling() == 0


async def test_a_plugin_that_swallows_more_than_one_cancellation_ends_too(bench):
    body = """
@hookimpl
async def mail(self):
    for _ in range(2):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
    return Accept()
"""
    chain = bench.chain("slow: {deadline: 0.05s}", slow=plugin(body))
    assert (await ask_mail(chain)).failed
    assert asyncio.current_task().cancelling() == 0


async def test_timeouts_inside_a_plugin_work(bench):
    body = """
@hookimpl
async def mail(self):
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    except TimeoutError:
        return Reject("5.7.1", "its own")
"""
    chain = bench.chain(timed=plugin(body))
    assert (await ask_mail(chain)).value == Reject("5.7.1", "its own")


async def test_each_plugin_has_a_deadline_of_its_own(bench):
    wait = plugin("@hookimpl\nasync def mail(self):\n    await asyncio.sleep(0.05)")
    chain = bench.chain(
        "\n".join(f"p{i}: {{deadline: 0.2s}}" for i in range(8)), **{f"p{i}": wait for i in range(8)}
    )
    assert not (await ask_mail(chain)).failed


async def test_a_client_that_leaves_cancels_the_plugin_and_is_no_fault(bench):
    chain = bench.chain(slow=plugin("@hookimpl\nasync def mail(self):\n    await asyncio.sleep(60)"))
    task = asyncio.create_task(ask_mail(chain))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bench.told("plugin.failed")
    assert not bench.told("plugin.timed_out")


async def test_a_generator_based_awaitable_is_awaited(bench):
    chain = bench.chain(fut=plugin("@hookimpl\ndef mail(self):\n    return asyncio.sleep(0, Accept())"))
    assert (await ask_mail(chain)).value == Accept()


# Edits

EDIT = "@hookimpl\n{kind} message(self, message):\n    message.prepend('X-Seen', '{name}')\n    {then}"


async def edited(bench, yaml="", **plugins):
    message = Message.parse(b"Subject: x\n\nbody\n")
    answer = await bench.chain(yaml, **plugins).ask(Stages.message, transaction(), message)
    return answer, bytes(message)


async def test_edits_of_a_plugin_are_seen_by_the_next(bench):
    look = plugin(
        "@hookimpl\ndef message(self, message):\n    return Reject('5.7.1', message.values('X-Seen')[0])"
    )
    answer, message = await edited(
        bench, a=plugin(EDIT.format(kind="def", name="a", then="return None")), b=look
    )
    assert answer.value == Reject("5.7.1", "a")
    assert message == b"X-Seen: a\nSubject: x\n\nbody\n"


@pytest.mark.parametrize(
    ("yaml", "then", "kind"),
    [
        ("a: {dry_run: true}", "return Reject('5.7.1', 'x')", "def"),
        ("a: {on_error: skip}", "1 / 0", "def"),
        ("a: {on_error: skip, deadline: 0.05s}", "await asyncio.sleep(60)", "async def"),
    ],
)
async def test_a_dry_run_a_fault_and_a_timeout_leave_no_edit(bench, yaml, then, kind):
    answer, message = await edited(bench, yaml, a=plugin(EDIT.format(kind=kind, name="a", then=then)))
    assert answer.value is None
    assert message == b"Subject: x\n\nbody\n"


async def test_dry_run_tells_what_it_would_have_said(bench):
    chain = bench.chain("strict: {dry_run: true}", strict=says("mail", "Reject('5.7.1', 'no')"))
    assert (await ask_mail(chain)).value is None
    (event,) = bench.told("plugin.dry_run")
    assert event.plugin == "strict"
    assert "5.7.1" in event.answer


# Transform


async def test_transforms_see_each_others_result_and_lists_go_item_by_item(bench):
    double = "return [recipient.at(name + recipient.address.domain) for name in ('a1@', 'a2@')]"
    upper = "return recipient.at(recipient.address.upper())"
    chain = bench.chain(
        "percenthack: {enabled: false}\nlocals: {enabled: false}\nvirtual_domains: {enabled: false}",
        a=plugin(f"@hookimpl\ndef rewrite(self, recipient):\n    {double}"),
        b=plugin(f"@hookimpl\ndef rewrite(self, recipient):\n    {upper}"),
    )
    answer = await chain.transform(Stages.rewrite, Recipient.of("joe@example.org"))
    assert [one.address for one in answer.value] == ["A1@EXAMPLE.ORG", "A2@EXAMPLE.ORG"]


async def test_a_failing_transform_is_told(bench):
    chain = bench.chain(bad=plugin("@hookimpl\ndef rewrite(self, recipient):\n    return 'junk'"))
    answer = await chain.transform(Stages.rewrite, Recipient.of("joe@example.org"))
    assert answer.failed
    assert answer.plugin == "bad"


# Observers


async def test_observers_never_delay_nor_break_what_they_watch(bench):
    chain = bench.chain(watch=plugin("@hookimpl\ndef event(self, event):\n    1 / 0"))
    from gateway.events import GatewayStarted

    chain.emit(GatewayStarted(version="1"))
    assert [event.NAME for event in bench.emitted] == ["gateway.started"]
    await chain.drain()
    # The fault of the observer is an event too, and is not shown to observers again.
    assert [event.NAME for event in bench.emitted] == ["gateway.started", "plugin.failed"]


async def test_observers_that_are_too_slow_lose_events_and_it_is_counted(bench):
    from gateway import chain as module
    from gateway.events import GatewayStarted

    chain = bench.chain(watch=plugin("@hookimpl\nasync def event(self, event):\n    await asyncio.sleep(0)"))
    for _ in range(module.OBSERVER_BACKLOG + 5):
        chain.emit(GatewayStarted())
    await chain.drain()
    (dropped,) = bench.told("events.dropped")
    assert dropped.count == 5


async def test_relay_takes_no_skip_and_no_dry_run(bench):
    from gateway.errors import PluginError

    bench.write({"opener": says("relay", "Accept()")})
    for policy in ("on_error: skip", "dry_run: true"):
        with pytest.raises(PluginError, match="relay takes no on_error"):
            bench.build(f"opener: {{{policy}}}")


async def test_ask_plugin_asks_one_only(bench):
    chain = bench.chain(
        one=plugin("@hookimpl\ndef exists(self, recipient):\n    return True"),
        two=plugin("@hookimpl\ndef exists(self, recipient):\n    return False"),
    )
    assert (await chain.ask_plugin("two", Stages.exists, Recipient.of("a@b"))).value is False
    assert (await chain.ask_plugin("nobody", Stages.exists, Recipient.of("a@b"))).value is None


async def test_the_address_type_survives(bench):
    chain = bench.chain(
        who=plugin(
            "@hookimpl\ndef mail(self, transaction):\n    return Reject('5.7.1', transaction.sender.domain)"
        )
    )
    assert (await ask_mail(chain)).value == Reject("5.7.1", "example.com")
    assert Address("A@B").domain == "b"
