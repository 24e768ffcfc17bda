"""A whole gateway on free ports of loopback, in a thread, with a host behind it that takes all mail."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import uvloop

from gateway import journal
from gateway.counters import Counters
from gateway.listeners import open_sockets
from gateway.plugin import Services
from gateway.testing.sink import sink
from gateway.worker import Configuration, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.services import Clock, Dns

#: The longest that a test waits for anything, in seconds.
PATIENCE = 10.0
_POLL = 0.01
#: Loopback may relay, example.org is ours, and what leaves goes to the host behind; `{sink}` is its port.
CONF = """\
gateway: {{hostname: mail.example.org, state: var}}
listeners: [{{name: mx, protocol: smtp, address: "127.0.0.1:0"}}]
plugins: {{folders: [plugins]}}
relay_control: {{clients: [127.0.0.1]}}
remote: {{routes: {{"": "127.0.0.1:{sink}"}}}}
"""


class Running:
    """`with Running(base, yaml, clock, dns) as gateway:` serves at `gateway.port` until the block ends.

    Plugins stand in `base/plugins`. What is sent on arrives as files in `base/sink`.
    """

    def __init__(self, base: Path, yaml: str, clock: Clock, dns: Dns) -> None:
        self.base = base
        self.port = 0
        self._yaml = yaml
        self._services = Services(clock, dns, Counters(clock))
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), name="mailward_gateway")
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event
        self._worker: Worker

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(PATIENCE)
        if self._failure is not None:
            self._thread.join(PATIENCE)
            raise self._failure
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop before the block ends: what is in the queue can be looked at then."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(PATIENCE)

    @contextlib.contextmanager
    def client(self) -> Iterator[smtplib.SMTP]:
        """Connect as a client; the session ends with the block."""
        with smtplib.SMTP("127.0.0.1", self.port, "client.example", timeout=PATIENCE) as client:
            yield client

    def send(
        self, sender: str, recipients: list[str], content: bytes | str = "Subject: hello\n\nhello\n"
    ) -> None:
        """Send a message, its line ends made CRLF. Raises what smtplib raises when it is refused."""
        raw = content.encode() if isinstance(content, str) else content
        raw = raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        with self.client() as client:
            client.sendmail(sender, recipients, raw)

    def reload(self, yaml: str | None = None) -> None:
        """Reload, with other settings when they are given. Raises GatewayError."""
        if yaml is not None:
            (self.base / "conf.d" / "20-test.yaml").write_text(yaml, "utf-8")
        asyncio.run_coroutine_threadsafe(self._worker.reload(), self._loop).result(PATIENCE)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Give the events of this name, or all, in order: those that are on disk, so see `wait_for`, too."""
        return [
            one
            for one in journal.read(self.base / "var" / "journal", having=name)
            if name in ("", one["event"])
        ]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until there are so many events of a name, and give them. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while len(found := self.events(name)) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(found)} of {count} events {name} came in {PATIENCE:g} s")
            time.sleep(_POLL)
        return found

    def arrived(self, count: int = 1) -> list[bytes]:
        """Wait until so many messages were sent on, and give them in order; the envelope stands on top."""
        self.wait_for("delivery.delivered", count)
        return [path.read_bytes() for path in sorted((self.base / "sink").glob("*.eml"))]

    async def _serve(self) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                port = await stack.enter_async_context(sink("127.0.0.1", 0, self.base / "sink"))
                await self._start(port)
                stack.push_async_callback(self._worker.stop)
                self._started.set()
                await self._ended.wait()
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
            self._failure = error
        finally:
            self._started.set()

    async def _start(self, port: int) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        conf = self.base / "conf.d"
        for folder in (conf, self.base / "plugins"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        (conf / "10-gateway.yaml").write_text(CONF.format(sink=port), "utf-8")
        (conf / "20-test.yaml").write_text(self._yaml, "utf-8")
        configuration = Configuration.load(conf)
        sockets = open_sockets(configuration.settings.listeners)
        self.port = next(iter(sockets.values()))[0].getsockname()[1]
        self._worker = Worker(configuration, sockets, self._services)
        await self._worker.start()
