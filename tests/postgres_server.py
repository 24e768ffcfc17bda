"""A real PostgreSQL server that the tests start, stop and start again."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SECRET = "s3cret:/@ x"
#: Where a server whose speed nobody measures has its files.
MEMORY = Path("/dev/shm")


class Server:
    """A server of our own, on a free port, run by its own user as it insists."""

    def __init__(self, programs, folder=None, options=()):
        self.base = Path(tempfile.mkdtemp(prefix="mailward-postgres-", dir=folder))
        self.process = None
        self.user = {} if os.geteuid() else {"user": "postgres", "group": "postgres", "extra_groups": []}
        if self.user:
            os.chown(self.base, pwd.getpwnam("postgres").pw_uid, -1)
        (self.base / "password").write_text(SECRET)
        (self.base / "password").chmod(0o644)
        self.run(
            programs / "initdb",
            *["-D", "data", "-U", "mail", "-A", "scram-sha-256", "--pwfile", "password", "--no-sync"],
            *["-E", "UTF8", "--locale", "C"],
        )
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = self.url_of("postgres")
        self.command = [
            *[programs / "postgres", "-D", "data", "-p", str(self.port), "-k", str(self.base)],
            *["-h", "127.0.0.1", "-c", "max_connections=200", *options],
        ]

    def url_of(self, database, user="mail", port=None):
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def run(self, *command):
        subprocess.run(command, cwd=self.base, check=True, capture_output=True, timeout=60, **self.user)

    def start(self, *options):
        import psycopg

        self.process = subprocess.Popen(
            [*self.command, *options],
            cwd=self.base,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.user,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                assert self.process.poll() is None
                time.sleep(0.05)

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        self.process.wait(20)

    def execute(self, *statements, database="postgres"):
        """Run statements; gives the rows of the last."""
        import psycopg

        with psycopg.connect(self.url_of(database), password=SECRET, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def remove(self):
        if self.process is not None and self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.base)


def make(**more):
    """Give a server that runs, or skip with what is missing; in CI nothing may be missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    remedy = "" if importlib.util.find_spec("psycopg") else "pip install 'mailward[postgres]'"
    remedy = remedy if found else "apt install postgresql"
    if remedy and os.environ.get("MAILWARD_CI"):
        pytest.fail(f"in CI nothing may be missing: {remedy}", pytrace=False)
    if remedy:
        pytest.skip(remedy)
    server = Server(found[-1].parent, **more)
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


class Proxy:
    """A way to the server that a test can cut: `block` swallows all silently, `drop` hangs up."""

    def __init__(self, port):
        self._server_port = port
        self._writers = set()
        self._open = asyncio.Event()
        self._open.set()
        #: Whether the answer to the next COMMIT is to be lost, of a connection that has said these words.
        self.swallow = False
        self.words = b"UPDATE node SET batch"

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.drop()
        self.unblock()
        self._server.close()

    def block(self):
        self._open.clear()

    def unblock(self):
        self._open.set()

    def drop(self):
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader, writer):
        await self._open.wait()
        try:
            there = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._up(reader, there[1], writer), self._down(there[0], writer))

    async def _up(self, reader, writer, back):
        said = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                said += data
                if self.swallow and self.words in said and b"COMMIT" in data:
                    self.swallow = False
                    back.transport.abort()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _down(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
