"""Plain functions that build what a test needs: a chain of real plugin files, a session, a message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from gateway.address import Address
from gateway.counters import Counters
from gateway.envelope import (
    Client,
    Delivery,
    Entry,
    EntryRecipient,
    Recipient,
    Route,
    Session,
    Transaction,
    new_id,
)
from gateway.loader import Loader
from gateway.message import Message
from gateway.plugin import Services, Site
from gateway.services import Clock, Dns
from gateway.settings import Settings
from gateway.settings.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gateway.chain import Chain
    from gateway.events import Event
    from gateway.loader import Generation


@dataclass
class Bench:
    """A loader with what it emits; `build` gives a generation of plugins from YAML and plugin files."""

    base: Path
    services: Services = field(default_factory=lambda: Services(Clock(), Dns(), Counters(Clock())))
    emitted: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loader = Loader(self.services, self.emitted.append, structlog.get_logger)
        self.folder = self.base / "plugins"
        self.folder.mkdir(exist_ok=True)
        # The loader takes no file that others may write, whatever the umask of this test is.
        self.folder.chmod(0o755)

    def write(self, plugins: Mapping[str, str]) -> None:
        """Write plugin files into the site's folder: stem -> source."""
        for stem, source in plugins.items():
            self._put(self.folder / f"{stem}.py", source)

    def add(self, plugin: Path) -> str:
        """Copy a plugin, a file or a folder, into the site's folder; gives its stem."""
        plugin = plugin.parent if plugin.name == "__init__.py" else plugin
        for path in sorted(plugin.rglob("*.py")) if plugin.is_dir() else [plugin]:
            self._put(self.folder / path.relative_to(plugin.parent), path.read_text("utf-8"))
        return plugin.stem

    def build(self, yaml: str = "", before: Generation | None = None) -> Generation:
        """Build a generation of the bundled plugins, those in the folder, and this configuration."""
        tree = Tree.parse({"conf.d/site.yaml": yaml}, base=self.base)
        postmaster = tree.text("gateway", "postmaster") or "postmaster@mail.example.org"
        site = Site("mail.example.org", postmaster, self.base / "state", self.base, 604800.0)
        return self.loader.build(tree, site, [self.folder], Settings.names(), before)

    def chain(self, yaml: str = "", **plugins: str) -> Chain:
        """Write plugin files and give the chain with them."""
        self.write(plugins)
        return self.build(yaml).chain

    def told(self, name: str) -> list[Event]:
        """Give the events of this name that were emitted."""
        return [event for event in self.emitted if name == event.NAME]

    def _put(self, path: Path, source: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.parent.chmod(0o755)
        path.write_text(source, "utf-8")
        path.chmod(0o644)


def session(ip: str = "192.0.2.7", **more: Any) -> Session:
    """Make a session of a client."""
    return Session(new_id(), "mx", "smtp", Client(ip), **more)


def transaction(
    sender: str = "sender@example.com", *, ip: str = "192.0.2.7", to: Sequence[str] = (), **more: Any
) -> Transaction:
    """Make a transaction of such a session; `to` are the recipients that were accepted."""
    more.setdefault("session", session(ip))
    more.setdefault("recipients", [recipient(one) for one in to])
    return Transaction(new_id(), Address(sender), more.pop("origin", "smtp"), **more)


def recipient(address: str = "info@example.org", **more: Any) -> Recipient:
    """Make a recipient, as RCPT gives it."""
    return Recipient.of(address, **more)


def message(body: str | bytes = "hello\n", fields: Mapping[str, str] | None = None) -> Message:
    """Make a message: its body, and header fields above or in place of From, To and Subject."""
    usual = {"From": "sender@example.com", "To": "info@example.org", "Subject": "hello"}
    header = "".join(f"{name}: {value}\n" for name, value in {**usual, **(fields or {})}.items())
    return Message.parse(header.encode() + b"\n" + (body.encode() if isinstance(body, str) else body))


def read_message(path: Path) -> Message:
    """Read an `.eml` file; line ends may be CRLF."""
    return Message.parse(path.read_bytes().replace(b"\r\n", b"\n"))


def entry(
    sender: str = "sender@example.com",
    to: Sequence[str] = ("info@example.org",),
    content: Message | None = None,
    **more: Any,
) -> Entry:
    """Make an entry of the queue, accepted at the time at which a FakeClock starts."""
    content = content or message()
    recipients = [EntryRecipient(number, recipient(one)) for number, one in enumerate(to)]
    more = {"birth": 1_700_000_000.0, "size": content.size, **more}
    return Entry(new_id(), Address(sender), content, recipients, **more)


def delivery(of: Entry | None = None, route: Route | None = None, attempt: int = 1) -> Delivery:
    """Make an attempt of an entry for all its recipients."""
    of = of or entry()
    route = route or Route("remote", "remote", "example.org")
    return Delivery(new_id(), of, route, tuple(of.recipients), of.sender, attempt)
