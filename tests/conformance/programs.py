"""Runs qmail's programs as processes, beside a real gateway or a recorder in the place of qmail-queue."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from gateway.journal import read
from gateway.submit import Submit
from gateway.worker import Configuration, Worker

PROGRAMS = Path(__file__).parents[2] / "contrib" / "qmail"
OWNER = os.geteuid() or 65534
CONF = {
    "gateway": {"hostname": "me.example", "state": "state", "postmaster": "postmaster@me.example"},
    "received": {"format": "qmail"},
    "remote": {"routes": {"": "127.0.0.1:1"}},
}


def run(program, *arguments, env=None, **more):
    """Run a program to its end, with nothing but `env` in its environment."""
    command = [sys.executable, "-IS", str(PROGRAMS / program), *arguments]
    env = {"PATH": "/usr/bin:/bin", **(env or {})}
    return subprocess.run(command, env=env, check=False, timeout=30, **more)


@contextlib.contextmanager
def open_folder():
    """Give a folder that every user may enter, as pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="qmail-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Running:
    """A gateway that serves its submit socket in a thread."""

    def __init__(self, base, conf=None):
        self.state = base / "state"
        (base / "conf.d").mkdir(exist_ok=True)
        (base / "conf.d" / "test.yaml").write_text(json.dumps({**CONF, **(conf or {})}))
        self.configuration = Configuration.load(base / "conf.d")

    def __enter__(self):
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(20)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    async def _serve(self, started):
        self.loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self.worker = Worker(self.configuration)
        self.submit = Submit(self.worker)
        try:
            await self.worker.start()
            await self.submit.start()
        finally:
            started.set()
        await self._ended.wait()
        await self.submit.stop()
        await self.worker.stop()

    def ask(self, coroutine):
        """Run a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def entry(self, id_):
        """Give an entry of the queue with its message."""
        return self.ask(self.worker.queue.get(id_))

    def entries(self):
        """Give all entries of the queue, whole."""
        from gateway.queue import Filter

        found = self.ask(self.worker.queue.list(Filter()))
        return [self.entry(one.id) for one in found]

    def told(self, *names):
        """Give the events of these names that are in the journal."""
        self.ask(self.worker.journal.flush())
        return [event for event in read(self.worker.journal.folder) if event["event"] in names]


def recorder(folder, code=0):
    """Write a program that takes the place of qmail-queue: it keeps what it is given in `folder`."""
    path = folder / "recorder"
    path.write_text(f"#!/bin/sh\ncat >'{folder}/message'\ncat <&1 >'{folder}/envelope'\nexit {code}\n")
    path.chmod(0o755)
    return path
