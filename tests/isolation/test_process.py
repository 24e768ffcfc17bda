"""`isolation: process`: a plugin in a process of its own is asked as any other, and ends alone."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from gateway import Accept, Address, Reject, Stages
from gateway.errors import GatewayError
from gateway.testing import Bench, delivery, entry, message, recipient, transaction

HEAD = """
import asyncio, os, time
from dataclasses import dataclass
from gateway import Plugin, Section, Reject, Accept, Hold, Stages, hookimpl, events
@dataclass
class Memory:
    seen: int = 0
class Settings(Section):
    #: What it says.
    word: str = "no"
class P(Plugin[Settings]):
"""
ALL = (
    HEAD
    + """
    @hookimpl
    def startup(self):
        (self.site.state / "started").open("a").write(f"{os.getpid()}\\n")
    @hookimpl
    def shutdown(self):
        (self.site.state / "ended").write_text(str(os.getpid()))
    @hookimpl
    async def rcpt(self, transaction, recipient):
        self.state(transaction.session, Memory).seen += 1
        self.saved(transaction, Memory).seen += 10
        hits = await self.counters.hit("key", 60.0)
        self.emit(events.PluginLogged(plugin=self.stem, text=f"hits {hits}"))
        found = await self.chain.ask(Stages.account, "joe", "example.org")
        words = self.settings.word, self.state(transaction.session, Memory).seen, found.value.user
        return Reject("5.7.1", " ".join(map(str, words)), rule=str(self.place("word")))
    @hookimpl
    def message(self, transaction, message):
        message.prepend("X-Pid", str(os.getpid()))
        return {one.address: Hold("wait") for one in transaction.recipients}
    @hookimpl
    def incoming(self, message):
        message.prepend("X-In", "1")
        return message
    @hookimpl
    def outgoing(self, delivery, message):
        message.prepend("X-Seen", str(self.saved(delivery, Memory).seen))
        return message
    @hookimpl
    def mail(self, transaction):
        fault = transaction.sender.local_part
        if fault == "raise":
            {}["missing"]
        if fault == "exit":
            os._exit(3)
        if fault == "memory":
            bytearray(1 << 30)
        while fault == "spin":
            pass
    @hookimpl
    async def helo(self, name):
        if name == "slow":
            await asyncio.sleep(60)
        return Accept()
"""
)
ACCOUNT = (
    "from gateway import Account, Plugin, hookimpl\nclass A(Plugin):\n    @hookimpl\n"
    "    def account(self, local_part):\n        return Account(local_part, 1, 1, '/')\n"
)


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "state").mkdir()
    return Bench(tmp_path)


@contextlib.asynccontextmanager
async def running(bench, yaml="far: {isolation: process, deadline: 0.5s, word: never}", **plugins):
    bench.write({"far": ALL, **plugins})
    generation = bench.build(yaml)
    await generation.chain.life("far", Stages.startup)
    try:
        yield generation.chain, generation.plugins["far"].apart
    finally:
        await generation.chain.life("far", Stages.shutdown, quiet=True)


async def until_well(chain):
    async with asyncio.timeout(20):
        while (await chain.ask(Stages.mail, transaction())).failed:  # noqa: ASYNC110 - asked until it answers
            await asyncio.sleep(0.02)


async def until(met):
    async with asyncio.timeout(20):
        while not met():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.02)


async def test_it_is_asked_as_any_other(bench):
    async with running(bench, a_user=ACCOUNT) as (chain, process):
        about = transaction()
        for seen in (1, 2):
            answer = await chain.ask(Stages.rcpt, about, recipient())
            assert answer.value == Reject("5.7.1", f"never {seen} joe")
            assert answer.value.rule == "conf.d/site.yaml:1"
        assert [one.text for one in bench.told("plugin.logged")] == ["hits 1", "hits 2"]
        assert await bench.services.counters.hit("key", 60.0, 0) == 2
        letter = message()
        answer = await chain.ask(Stages.message, transaction(to=["a@b"]), letter)
        assert answer.value[Address("a@b")].reason == "wait"
        assert letter.values("X-Pid") == [str(process.pid)] != [str(os.getpid())]
        body = letter.body
        assert (await chain.transform(Stages.incoming, transaction(), letter)).value.body is body
        saved = {"far": {"seen": 20}}
        sent = await chain.transform(Stages.outgoing, delivery(entry(notes=saved)), message())
        assert sent.value.values("X-Seen") == ["20"]
        assert about.saved["far"].value == saved["far"]
        pid = process.pid
    assert (bench.base / "state/ended").read_text() == str(pid)
    assert not Path(f"/proc/{pid}").exists()


async def test_whatever_it_does_its_stage_is_answered_and_the_next_session_is_served(bench):
    async with running(bench) as (chain, process):
        first = process.pid
        for fault, told in (
            ("raise", "plugin.failed"),
            ("spin", "plugin.timed_out"),
            ("exit", "plugin.failed"),
        ):
            bench.emitted.clear()
            assert (await chain.ask(Stages.mail, transaction(f"{fault}@example.com"))).failed
            assert told in [one.NAME for one in bench.emitted]
            async with asyncio.timeout(1):
                await chain.ask(Stages.mail, transaction())
            await until_well(chain)
        assert process.pid != first
        (ended,) = bench.told("plugin.exited")
        assert ended.error == "exit code 3"
        assert (await chain.ask(Stages.helo, transaction().session, "x")).value == Accept()


@pytest.mark.slow
async def test_an_allocation_without_measure_ends_there(bench):
    async with running(bench) as (chain, process):
        first = process.pid
        assert (await chain.ask(Stages.mail, transaction("memory@example.com"))).failed
        assert "MemoryError" in bench.told("plugin.failed")[0].error
        await until(lambda: process.pid not in (first, 0))
        await until_well(chain)


@pytest.mark.slow
async def test_a_client_that_leaves_ends_its_call_and_not_the_process(bench):
    async with running(bench, "far: {isolation: process, deadline: 30s}") as (chain, process):
        asked = asyncio.create_task(chain.ask(Stages.helo, transaction().session, "slow"))
        await asyncio.sleep(0.1)
        pid = process.pid
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        assert (await chain.ask(Stages.helo, transaction().session, "x")).value == Accept()
        assert process.pid == pid


@pytest.mark.slow
async def test_a_late_call_that_listens_is_cancelled_and_the_process_lives(bench):
    async with running(bench) as (chain, process):
        pid = process.pid
        assert (await chain.ask(Stages.helo, transaction().session, "slow")).failed
        await until_well(chain)
        assert process.pid == pid


@pytest.mark.slow
async def test_a_killed_process_is_started_again(bench):
    async with running(bench) as (chain, process):
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: bench.told("plugin.exited"))
        await until_well(chain)
        assert bench.told("plugin.exited")[0].error == "killed by signal 9"
        assert len((bench.base / "state/started").read_text().splitlines()) == 2


@pytest.mark.slow
async def test_a_startup_that_fails_there_is_raised_here(bench):
    bench.write({"far": HEAD + "    @hookimpl\n    def startup(self):\n        raise OSError('no room')\n"})
    chain = bench.build("far: {isolation: process}").chain
    with pytest.raises(Exception, match="no room") as error:
        await chain.life("far", Stages.startup)
    assert not isinstance(error.value, GatewayError)
