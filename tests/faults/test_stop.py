"""SIGTERM under load: what is under way ends, what waits is kept, and the exit code is 0."""

import asyncio
import socket
from collections import Counter

from traffic import KINDS, Load, Sink, kind, token_of


async def test_sigterm_under_load_loses_and_repeats_nothing(gateway):
    gateway.home(**{"sent-on": "&box@example.org\n"})
    sink, load = Sink(), Load(gateway.port, 1)
    async with await asyncio.start_server(sink.serve, "127.0.0.1", 0) as server:
        gateway.configure(server.sockets[0].getsockname()[1])
        async with load.running():
            for sink.run in range(3):
                await gateway.start()
                load.up.set()
                await asyncio.sleep(0.5)
                load.up.clear()
                assert await gateway.stop() == 0
        await gateway.start()
        await gateway.empty()

    copies = Counter(map(token_of, gateway.delivered()))
    assert load.accepted
    assert {token for token in load.accepted if kind(token) != "remote"} <= copies.keys()
    assert {token for token in load.accepted if "far@example.net" in KINDS[kind(token)]} <= sink.copies.keys()
    assert [token for token, count in copies.items() if count > 1] == []
    assert [token for token, came in sink.copies.items() if len(came) > 1] == []


async def test_a_program_under_way_finishes_and_runs_once(gateway):
    gateway.home(slow="|touch began; while ! test -e go; do sleep 0.05; done; echo ran >> result\n")
    home = gateway.base / "home"
    await gateway.start()
    load = Load(gateway.port, 1)
    await load.send("slow-1", ["slow@example.org"])
    await _until((home / "began").exists)
    gateway.process.terminate()
    await _until(lambda: not _answers(gateway.port))
    assert gateway.process.returncode is None
    (home / "go").touch()
    assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
    await gateway.start()
    await gateway.empty()
    assert (home / "result").read_text() == "ran\n"


def _answers(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


async def _until(true):
    """Wait for what another process does."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - no event crosses processes
            await asyncio.sleep(0.02)
