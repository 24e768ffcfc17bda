"""Certificates that the agent has to read for us: a worker never waits for it with its loop."""

import asyncio
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from gateway import serving
from gateway.agency import Agency
from gateway.counters import Counters
from gateway.errors import ConfigError
from gateway.plugin import Services
from gateway.services import Clock
from gateway.serving import Serving
from gateway.settings import Certificate, Settings, Tls
from gateway.smtp import tls
from gateway.testing.fakes import FakeDns

PATIENCE = 20
#: Seconds until an agent that says nothing is given up here.
SILENCE = 0.2


@pytest.fixture
def files(tmp_path):
    """Give a certificate and its key."""
    made = Certificate(certificate=tmp_path / "mx.pem", key=tmp_path / "mx.key")
    renew(made)
    return made


def renew(files):
    made = trustme.CA().issue_cert("mail.example.org")
    files.certificate.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    files.key.write_bytes(made.private_key_pem.bytes())


@pytest.fixture
def agent(files, monkeypatch):
    """Give the agent's end of the way; the key is such that only the agent may open it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    clock = Clock()
    read = Path.read_bytes

    def only_ours(path):
        if path == files.key:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with ours, theirs:
        served = Serving(Services(clock, FakeDns(), Counters(clock), Agency(ours)), Settings.model_construct)
        monkeypatch.setattr(Path, "read_bytes", only_ours)
        monkeypatch.setattr(tls, "WITHIN", SILENCE)
        yield Agent(theirs, served)


class Agent:
    """Answers what it is asked, once it is to."""

    def __init__(self, way, served):
        self.serving = served
        self._way = way

    async def answer(self):
        loop = asyncio.get_running_loop()
        while True:
            ready = asyncio.Event()
            loop.add_reader(self._way, ready.set)
            await ready.wait()
            loop.remove_reader(self._way)
            data, (reply,), _, _ = socket.recv_fds(self._way, 4096, 1)
            file = os.open(json.loads(data)["path"], os.O_RDONLY)
            with socket.socket(fileno=reply) as back, suppress(OSError):  # who asked may have given up
                socket.send_fds(back, [b"{}"], [file])
            os.close(file)

    async def load(self, files):
        """Load the certificate at a start."""
        answering = asyncio.create_task(self.answer())
        settings = Settings.model_construct(tls=Tls(certificates=(files,)), listeners=())
        try:
            await self.serving.prepare(settings, {})
        finally:
            answering.cancel()
        await self.serving.switch({})


async def turns(until):
    """Count how often the loop comes round meanwhile."""
    count = 0
    while not until.done():
        await asyncio.sleep(SILENCE / 40)
        count += 1
    return count


async def test_an_agent_that_does_not_answer_costs_an_event_and_no_turn_of_the_loop(
    agent, files, monkeypatch
):
    monkeypatch.setattr(serving, "LOOK", 0.01)
    told, failed, loaded = [], asyncio.Event(), asyncio.Event()

    def emit(event):
        told.append(event)
        if event.NAME == "tls.certificate_failed":
            failed.set()
        elif failed.is_set():
            loaded.set()

    await agent.load(files)
    former = agent.serving.certificates.context
    watch = asyncio.create_task(agent.serving.watch(emit))
    async with asyncio.timeout(PATIENCE):
        assert await turns(asyncio.ensure_future(failed.wait())) > 5
        assert "the agent does not answer" in told[-1].error
        assert agent.serving.certificates.context is former
        renew(files)
        answering = asyncio.create_task(agent.answer())
        # It goes on to look, and has the new one when the agent is back.
        await loaded.wait()
    assert agent.serving.certificates.context is not former
    for task in (watch, answering):
        task.cancel()


async def test_a_start_and_a_reload_do_not_wait_with_the_loop_either(agent, files):
    settings = Settings.model_construct(tls=Tls(certificates=(files,)), listeners=())
    asking = asyncio.ensure_future(agent.serving.prepare(settings, {}))
    assert await turns(asking) > 5
    with pytest.raises(ConfigError, match=r"mx\.pem: the agent does not answer"):
        await asking


async def test_an_agent_that_takes_no_more_requests_is_given_up_too(agent, files):
    await agent.load(files)
    door = agent.serving._services.agency.door
    stuffed = Agency(door)
    with suppress(BlockingIOError):
        while True:
            door.send(b"{}", socket.MSG_DONTWAIT)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(OSError, match="the agent does not answer"):
            await asyncio.to_thread(stuffed.read, files.key, SILENCE)


class Silence:
    """A clock, and files that nobody reads while it goes on."""

    def __init__(self, speaks):
        self.now = 0.0
        self.speaks = speaks
        self.asked = []

    def read(self, path, within):
        if self.speaks:
            return path.read_bytes()
        self.asked.append(path.name)
        self.now += within
        raise TimeoutError(110, "the agent does not answer", str(path))


def test_several_silent_files_do_not_add_up_and_the_next_look_comes_within_a_minute(
    files, tmp_path, monkeypatch
):
    other = Certificate(certificate=tmp_path / "other.pem", key=tmp_path / "other.key")
    renew(other)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    agent = Silence(speaks=True)
    monkeypatch.setattr(tls.time, "monotonic", lambda: agent.now)
    loaded = tls.Certificates(Tls(certificates=(files, other), client_ca=tmp_path / "ca.pem"), agent.read)
    for looks in (1, 2):
        agent.now, agent.speaks, agent.asked = looks * 1000.0, False, []
        told = loaded.refresh(0.0)
        # Each is told, though there was no time left to wait for the second.
        assert agent.asked == ["ca.pem", "mx.pem", "other.pem"]
        assert [one.NAME for one in told] == ["tls.certificate_failed"] * 3
        assert agent.now - looks * 1000.0 + serving.LOOK <= 60
    agent.speaks = True
    renew(other)
    assert [one.NAME for one in loaded.refresh(0.0)] == ["tls.certificate_loaded"]


async def test_an_agent_is_not_even_asked_when_there_is_no_time_left(agent, files):
    await agent.load(files)
    with pytest.raises(OSError, match="the agent does not answer: timed out"):
        await asyncio.to_thread(agent.serving._services.agency.read, files.key, 0)
    with pytest.raises(BlockingIOError):
        agent._way.recv(1)
