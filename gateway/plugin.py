"""Section and Plugin: the bases of every plugin."""

from __future__ import annotations

import json
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal

from pydantic import Field, TypeAdapter
from pydantic_core import to_jsonable_python
from typing_extensions import TypeVar

from gateway.envelope import Delivery, Transaction
from gateway.settings.options import Block
from gateway.settings.units import Duration  # noqa: TC001 - pydantic reads it at run time
from gateway.when import When

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from gateway.agency import Agency
    from gateway.chain import Chain
    from gateway.counters import Counters
    from gateway.envelope import Entry, Session
    from gateway.errors import Place
    from gateway.events import Event
    from gateway.hookspecs import Stages as _Base
    from gateway.services import Clock, Dns
else:

    class _Base:
        """At run time a plugin inherits nothing from Stages: an unused stage must not look implemented."""


T = TypeVar("T")


class Section(Block):
    """Settings of a plugin: subclass it as `Settings`, one field an option, `#:` comments above each.

    The keys below are every plugin's; a subclass may not redefine them.
    """

    #: Run this plugin; false takes it out of the chain.
    enabled: bool = True
    #: Stems of plugins that must be asked after this one.
    before: list[str] = []
    #: Stems of plugins that must be asked before this one.
    after: list[str] = []
    #: What the client hears when this plugin fails: `defer` (451 4.3.0), or `skip` as if it had said nothing.
    on_error: Literal["defer", "skip"] = "defer"
    #: The longest that one call may wait.
    deadline: Duration = Field(default=30.0, gt=0)
    #: Only log what it would have said.
    dry_run: bool = False
    #: Which mail it is for; it is not asked about other mail.
    when: When = When()
    #: Where it runs: `inline` in the gateway, each call in a `thread`, or all in a `process` of its own.
    isolation: Literal["inline", "thread", "process"] = "inline"
    #: For an installed plugin that takes a bundled plugin's stem: the distribution that may.
    distribution: str = ""


#: What one plugin may store with a message, in bytes of JSON.
LARGEST_NOTE = 64 * 1024

S = TypeVar("S", bound=Section, default=Section)


@dataclass(frozen=True, slots=True)
class Site:
    """What every plugin may know of the gateway that it runs in."""

    #: The gateway's own name, for greetings, Received and bounces.
    hostname: str
    #: Where mail for a postmaster without an account goes.
    postmaster: str
    #: Where state lives; a plugin may keep files in `state / stem`.
    state: Path
    #: Relative paths in settings start here.
    base: Path
    #: Seconds that a message may wait in the queue.
    lifetime: float
    #: Number of the worker that this plugin runs in, and of its part of the queue; counts from 0.
    shard: int = 0
    #: The folder of the configuration, as commands want to be told of it; None where there is none.
    conf: Path | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What plugins may use and tests may fake; one set for a whole gateway."""

    clock: Clock
    dns: Dns
    counters: Counters
    #: Who becomes other users for us; None when nobody can.
    agency: Agency | None = None


@dataclass(frozen=True, slots=True)
class Crossed:
    """A plugin's own object as JSON: it comes from the plugin's process, or from the queue."""

    value: Any


def stored(transaction: Transaction) -> tuple[dict[str, Any], dict[str, str]]:
    """Give what plugins store with a message, as JSON by their stems, and what is wrong with the rest."""
    notes: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for stem, value in transaction.saved.items():
        try:
            notes[stem] = jsonable(value)
            if len(json.dumps(notes[stem])) > LARGEST_NOTE:
                faults[stem] = f"what it stores with a message is larger than {LARGEST_NOTE} bytes"
        except (TypeError, ValueError) as error:
            faults[stem] = f"what it stores with a message is no JSON: {error}"
    return notes, faults


def jsonable(value: Any) -> Any:
    """Give a plugin's own object as JSON. Raises ValueError or TypeError when it has no such form."""
    return value.value if isinstance(value, Crossed) else to_jsonable_python(value)


class Context:
    """What the loader hands to a plugin's constructor. `chain` is set when the chain is built."""

    def __init__(
        self,
        stem: str,
        settings: Any,
        site: Site,
        services: Services,
        log: FilteringBoundLogger,
        place: Callable[..., Place | None],
    ) -> None:
        self.stem = stem
        self.settings = settings
        self.site = site
        self.services = services
        self.log = log
        self.place = place
        self.chain: Chain | None = None
        #: The gateway's loop, where the plugin's calls are made in threads.
        self.loop: asyncio.AbstractEventLoop | None = None


class Plugin(_Base, Generic[S]):
    """Base of every plugin: one instance per configuration.

    Override the stages of `gateway.Stages` that you want, each marked with `@hookimpl`.
    Do not keep state of sessions in `self`: see `state`.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.stem = context.stem
        self.settings: S = context.settings
        self.site = context.site
        self.log = context.log
        self.clock = context.services.clock
        self.dns = context.services.dns
        self.counters = context.services.counters
        #: Who does for us what needs the rights of root; None where nobody does.
        self.agency = context.services.agency

    @property
    def chain(self) -> Chain:
        """The chain that this plugin is in, to ask other stages (`rewrite`, `route`, `account`, `exists`)."""
        if self._context.chain is None:
            raise RuntimeError("the chain is not built yet: ask it from startup() on")
        return self._context.chain

    def join(self, chain: Chain) -> None:
        """Be in this chain from now on; the loader calls it, also for an instance that outlives a reload."""
        self._context.chain = chain

    def relay_by(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell events through the gateway's loop from now on: the calls are made in threads."""
        self._context.loop = loop

    def place(self, *keys: str | int) -> Place | None:
        """Find where a setting of this plugin stands: `place("domains", "example.org")`."""
        return self._context.place(self.stem, *keys)

    def emit(self, event: Event) -> None:
        """Tell a fact; it goes to the journal."""
        if self._context.loop is None:
            self.chain.emit(event)
        else:
            self._context.loop.call_soon_threadsafe(self.chain.emit, event)

    def state(self, holder: Session | Transaction, kind: type[T]) -> T:
        """Give this plugin's own object on a session or transaction, made by `kind()` at first use."""
        return self._own(holder.notes, kind)

    def saved(self, holder: Transaction | Entry | Delivery, kind: type[T]) -> T:
        """Give this plugin's own object that is stored with the message, to be read behind the queue.

        It is JSON there, so `kind` is a dataclass of plain values; what is changed behind the queue is not
        stored. Raises TypeError, ValueError for another kind.
        """
        if not is_dataclass(kind):
            raise TypeError(f"{kind.__name__} is no dataclass, so it cannot be saved")
        if isinstance(holder, Transaction):
            return self._own(holder.saved, kind)
        entry = holder.entry if isinstance(holder, Delivery) else holder
        return self._own(dict(entry.notes), kind)

    def _own(self, notes: dict[str, Any], kind: type[T]) -> T:
        found = notes.get(self.stem)
        if not isinstance(found, kind):
            raw = found.value if isinstance(found, Crossed) else found
            notes[self.stem] = found = kind() if raw is None else TypeAdapter(kind).validate_python(raw)
        return found
