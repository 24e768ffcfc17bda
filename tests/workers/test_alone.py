"""What befalls single workers, or all at once: frozen, broken, fewer than before, without a supervisor."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
#: Every recipient of its own destination waits for the file `go`; how many run at a time is seen in `seen`.
SLOW = """
import asyncio, os
from pathlib import Path
from gateway import Outcome, Plugin, Route, hookimpl

class Slow(Plugin):
    @hookimpl
    def route(self, recipient):
        if recipient.address.domain == "slow.example":
            return Route("slow", "remote", "slow.example")

    @hookimpl
    async def deliver(self, delivery):
        base = self.site.base / "var" / "seen"
        base.mkdir(exist_ok=True)
        mine = base / f"{delivery.entry.id}"
        mine.touch()
        while not (self.site.base / "var" / "go").exists():
            await asyncio.sleep(0.02)
        mine.unlink()
        return [Outcome(one.number, "delivered", "done") for one in delivery.recipients]
"""
FREEZE = """
import time
from gateway import Plugin, hookimpl

class Freezing(Plugin):
    @hookimpl
    def mail(self, transaction):
        if transaction.sender.local_part == "freeze":
            while True:
                {how}
"""


#: It lets no other thread of the process run, either.
REGEX = "__import__('re').match('(a+)+$', 'a' * 60 + 'b')"


#: It does not even hear a signal, and uses no processor.
FOR_EVER = "(self.site.state / 'frozen').touch(); __import__('ctypes').PyDLL(None).pause()"


def send_from(site, sender):
    with contextlib.suppress(Exception):
        site.send(sender=sender)


def test_deliveries_at_one_time_are_counted_for_all_workers_and_given_back_by_a_dead_one(site):
    site.plugin("slow", SLOW)
    site.configure("queue: {concurrency: {remote: 20, per_destination: 3}}\n", workers=2)
    site.own()
    site.start()
    for number in range(24):
        site.send("far@slow.example", sender=f"ann-{number}@example.com")
    seen = site.state / "seen"
    site.until(lambda: seen.is_dir() and len(list(seen.iterdir())) == 3)
    assert len(site.streams("message.accepted")) > 1
    assert len(list(seen.iterdir())) == 3
    delivering = {one["stream"]: one for one in site.events("delivery.started")}
    victim = next(one for one in site.workers() if one["worker"] in delivering)
    os.kill(victim["pid"], signal.SIGKILL)
    site.until(lambda: site.events("worker.died") and all(one["serves"] for one in site.workers()))
    (site.state / "go").touch()
    site.until(lambda: site.ask("queue.stats") == [])
    assert len(site.events("message.finished")) == 24
    assert site.stop() == 0


def test_with_fewer_workers_than_before_no_mail_is_stuck(site):
    site.plugin("slow", SLOW)
    site.configure(workers=3)
    site.own()
    site.start()
    site.until(
        lambda: (
            site.send("far@slow.example") or len({e["stream"] for e in site.events("message.accepted")}) == 3
        )
    )
    # Deliveries under way would hold the end up.
    os.killpg(site.process.pid, signal.SIGKILL)
    site.process.wait()
    site.process.stdout.close()
    (site.state / "go").touch()
    site.configure(workers=1)
    site.start()
    site.until(lambda: site.ask("queue.stats") == [])
    accepted = {one["message"] for one in site.events("message.accepted")}
    assert {one["message"] for one in site.events("message.finished")} == accepted
    assert site.stop() == 0


def test_a_worker_that_cannot_be_started_again_is_no_loss_to_clients(site):
    site.configure(workers=2)
    site.start()
    victim = site.workers()[1]
    site.plugin("broken", "1 / 0\n")
    os.kill(victim["pid"], signal.SIGKILL)
    (refused, *_) = site.until(
        lambda: [one for one in site.events("worker.died") if one["reason"] == "refused"]
    )
    assert "broken.py:1: ZeroDivisionError" in refused["error"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: site.send(), range(16)))
    (site.base / "plugins" / "broken.py").unlink()
    site.until(lambda: all(one["serves"] for one in site.workers()))
    assert site.stop() == 0


def test_when_no_worker_is_left_and_none_can_be_started_the_gateway_ends_with_the_error(site):
    site.configure(workers=1)
    site.start()
    site.plugin("broken", "1 / 0\n")
    os.kill(site.workers()[0]["pid"], signal.SIGKILL)
    assert site.process.wait(60) == 1
    (stopped,) = site.events("gateway.stopped")
    assert stopped["reason"] == "no worker can be started"


def test_without_a_supervisor_workers_end_by_themselves(site):
    site.configure(workers=2)
    site.start()
    pids = [one["pid"] for one in site.workers()]
    os.kill(site.process.pid, signal.SIGKILL)
    site.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    site.process.wait()
    site.process.stdout.close()
    site.start()
    site.send()
    assert site.stop() == 0


def test_without_a_supervisor_a_frozen_worker_ends_too(site):
    site.plugin("freezing", FREEZE.format(how=FOR_EVER))
    site.configure(workers=2)
    site.own()
    site.start()
    pids = [one["pid"] for one in site.workers()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        frozen = pool.submit(send_from, site, "freeze@example.com")
        site.until((site.state / "frozen").exists)  # the watchdog would need four seconds from now
        os.kill(site.process.pid, signal.SIGKILL)
        began = time.monotonic()
        site.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        frozen.result()
    print(f"gone after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("how", ["time.sleep(0.1)", "sum(range(1000))", REGEX])
def test_a_frozen_worker_is_killed_its_plugin_named_and_all_are_back_within_ten_seconds(site, how):
    site.plugin("freezing", FREEZE.format(how=how))
    site.own()
    began = time.monotonic()
    site.start()
    start = time.monotonic() - began
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        frozen = pool.submit(send_from, site, "freeze@example.com")
        (died,) = site.until(lambda: site.events("worker.died"))
        assert (died["reason"], died["plugin"]) == ("frozen", "freezing")
        assert "in mail" in died["traceback"]
        site.until(lambda: all(one["serves"] for one in site.workers()))
        took = time.monotonic() - began
        frozen.result()
    for _ in range(8):
        site.send()
    site.until(lambda: site.ask("queue.stats") == [])
    print(f"back after {took:.1f} s, a start of four took {start:.1f} s")
    assert took < 10 or took < 6 + 2 * start  # the rest is a loaded machine
    assert site.stop() == 0


def test_processes_that_were_stopped_for_a_while_are_not_taken_for_frozen(site):
    site.start()
    os.killpg(site.process.pid, signal.SIGSTOP)
    time.sleep(6)
    os.killpg(site.process.pid, signal.SIGCONT)
    worker = site.workers()[0]["pid"]
    os.kill(worker, signal.SIGSTOP)  # as a debugger does
    time.sleep(6)
    os.kill(worker, signal.SIGCONT)
    time.sleep(2)
    assert site.events("worker.died") == []
    assert all(one["serves"] for one in site.workers())
    assert site.stop() == 0


def test_sockets_that_systemd_has_opened_are_shared_by_all(site):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(64)
        site.port = one.getsockname()[1]
        site.configure(workers=2)
        site.start(given=one)
    site.until(lambda: site.send() or len(site.streams("session.opened")) == 2)
    assert site.stop() == 0
