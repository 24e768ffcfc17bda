"""A disk that is full: 452 to the sender, nothing lost, and mail again as soon as there is room."""

import asyncio
import contextlib
import os
import subprocess

import pytest
from traffic import Load, Sink

MB = 2**20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture
def small_disk(gateway):
    """Put the gateway's state on a disk of 64 MB, of which the queue keeps 32 free for what it has taken."""
    gateway.state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", gateway.state],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    gateway.own()
    yield gateway
    subprocess.run(["umount", "--lazy", gateway.state], check=True)


async def test_a_full_disk_refuses_for_now_and_recovers_by_itself(small_disk):
    gateway = small_disk
    sink, load = Sink(), Load(gateway.port, 1)
    ballast = gateway.state / "ballast"
    ballast.write_bytes(b"x" * 30 * MB)
    # Nobody listens at the sink's port yet, so what is accepted stays.
    await gateway.start()
    assert (await _refusal(load)).startswith("452 4.3.1 ")
    assert gateway.process.returncode is None

    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(b"x" * MB):
            pass
    # A worker looks at the disk once a second.
    assert (await _refusal(load)).startswith("452 4.3.1 ")

    ballast.unlink()
    async with asyncio.timeout(15):
        while not (await load.send("after", ["box@example.org"])).startswith("250"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async with await asyncio.start_server(sink.serve, "127.0.0.1", 0) as server:
        gateway.configure(server.sockets[0].getsockname()[1])
        gateway.ask("reload")
        gateway.ask("queue.retry")
        await gateway.empty()
        assert await gateway.stop() == 0
    assert sink.copies.keys() == load.accepted - {"after"}
    assert gateway.events()
    assert len(gateway.delivered()) == 1


async def _refusal(load):
    """Send until there is one; gives it."""
    for _ in range(2000):
        said = await load.send(f"remote-{len(load.accepted)}", ["far@example.net"], size=20_000)
        if not said.startswith("250"):
            return said
    raise AssertionError("everything was taken")
