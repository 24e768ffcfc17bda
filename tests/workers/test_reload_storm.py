"""200 reloads under load, every other one of a broken plugin: no session is cut and no message lost."""

import contextlib
import threading
import time
from pathlib import Path

import pytest

from gateway.errors import ControlError

RELOADS = 200
GOOD = """\
from gateway import Plugin, hookimpl


class Changing(Plugin):
    @hookimpl
    def message(self, transaction, message):
        message.prepend("X-Version", "{number}")
"""
BROKEN = ("def (", "raise OSError('not today')", "from gateway import Nothing", "x = 1")


class Load(threading.Thread):
    """A client that sends one message after the other in one session."""

    def __init__(self, site):
        super().__init__()
        self.site, self.sent, self.fault, self.ended = site, 0, None, threading.Event()

    def run(self):
        try:
            with self.site.client() as client:
                while not self.ended.is_set():
                    client.sendmail("ann@example.com", ["box@example.org"], "Subject: x\r\n\r\nx\r\n")
                    self.sent += 1
                    time.sleep(0.02)
        except Exception as error:  # noqa: BLE001 - shown by the test
            self.fault = error


def memory(site):
    """Give the resident kilobytes of each worker."""
    pids = [one["pid"] for one in site.workers()]
    return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in pids]


def storm(site, reloads):
    loads = [Load(site) for _ in range(4)]
    for load in loads:
        load.start()
    sizes = []
    for number in range(reloads):
        broken = number % 2
        site.plugin("changing", BROKEN[number // 2 % 4] if broken else GOOD.format(number=number))
        with contextlib.suppress(ControlError):
            site.ask("reload")
            assert not broken
        if number in (reloads // 4, reloads - 1):
            sizes.append(memory(site))
    for load in loads:
        load.ended.set()
    for load in loads:
        load.join(30)
    assert [load.fault for load in loads] == [None] * 4
    new = site.base / "home/Maildir/new"
    site.until(lambda: len(list(new.iterdir())) >= sum(load.sent for load in loads))
    assert len(list(new.iterdir())) == sum(load.sent for load in loads)
    return sizes


@pytest.fixture
def busy(site):
    site.configure(workers=2)
    site.plugin("changing", GOOD.format(number=0))
    site.own()
    site.start()
    return site


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_reloads_cut_no_session_lose_nothing_and_leave_memory_flat(busy):
    early, late = storm(busy, RELOADS)
    kept = [b - a for a, b in zip(early, late, strict=True)]
    assert max(kept) < 20_000, (early, late)
    loaded = busy.events("config.loaded")
    refused = busy.events("config.rejected")
    assert len(refused) == RELOADS // 2
    assert len(loaded) > RELOADS // 2
    assert busy.stop() == 0
