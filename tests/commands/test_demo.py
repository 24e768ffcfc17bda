"""`mailward demo`: finds the gateway that runs in this folder, and shows the way of two messages."""

import asyncio
import threading
import time

import pytest
from click.testing import CliRunner

from gateway.commands.group import mailward
from gateway.testing.sink import sink


@pytest.fixture
def receiver(site):
    """The demo's sink, at a free port to which the site sends its remote mail."""
    started, loops, ports = threading.Event(), [], []

    async def serve():
        ended = asyncio.Event()
        loops.append((asyncio.get_running_loop(), ended))
        async with sink("127.0.0.1", 0, site.base / "var" / "sink") as port:
            ports.append(port)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    site.write("40-remote.yaml", f'remote: {{routes: {{"": "127.0.0.1:{ports[0]}"}}}}\n')
    yield
    loop, ended = loops[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join(10)


def demo():
    return CliRunner().invoke(mailward, ["demo"])


def test_it_shows_both_messages_to_their_ends(site, receiver, running, monkeypatch):
    del receiver
    port = 0
    for name in ("abc", "xyz"):
        home = site.base / "var" / "home" / name
        home.parent.mkdir(parents=True, exist_ok=True)
        site.home(name, default="./Maildir/\n", info="./Maildir/\n").rename(home)
    site.write("30-domains.yaml", (site.conf / "30-domains.yaml").read_text().replace("home/", "var/home/"))
    port = running()
    # The demo has a fixed port; a test must not.
    monkeypatch.setattr("gateway.commands.demo._listener", lambda _: ("127.0.0.1", port))
    monkeypatch.chdir(site.base)
    began = time.monotonic()
    result = demo()
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began < 10
    local, remote = result.output.split("2. a remote message")
    assert (
        "rewrite\tvirtual_domains\tabc-info@example.org\tconf.d/30-domains.yaml:3: example.org -> abc"
        in local
    )
    assert "The message is in var/home/abc/Maildir/new/" in local
    assert "The message is in var/sink/" in remote
    for part in (local, remote):
        assert part.count("message.finished") == 1
        assert "mailward trace" in part or "trace 0" in part


def test_without_a_gateway_it_says_how_to_start_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = demo()
    assert result.exit_code == 1
    assert "make run" in result.output
    assert "run --demo" in result.output
