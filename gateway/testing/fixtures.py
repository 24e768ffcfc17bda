"""Fixtures for what lives. A plugin's test names them: `pytest_plugins = ["gateway.testing.fixtures"]`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from gateway.counters import Counters
from gateway.plugin import Services
from gateway.services import Clock
from gateway.testing.build import Bench
from gateway.testing.fakes import FakeClock, FakeDns
from gateway.testing.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.hookspecs import Hook


class Loaded:
    """One plugin in a real chain."""

    def __init__(self, bench: Bench, stem: str, yaml: str) -> None:
        self.bench = bench
        self.stem = stem
        self.chain = bench.build(yaml).chain

    async def says(self, hook: Hook[Any], *args: Any) -> Any:
        """Ask the plugin alone; gives what it says. Raises AssertionError with the traceback of a failure."""
        told = len(self.bench.emitted)
        answer = await self.chain.ask_plugin(self.stem, hook, *args)
        # Also where `on_error: skip` would make silence of it.
        faults = [
            one for one in self.bench.emitted[told:] if one.NAME in ("plugin.failed", "plugin.timed_out")
        ]
        if faults:
            raise AssertionError("\n".join(getattr(one, "traceback", "") or repr(one) for one in faults))
        return answer.value


@pytest.fixture
def mailward_clock() -> FakeClock:
    """A clock that stands still until `advance(seconds)`."""
    return FakeClock()


@pytest.fixture
def mailward_dns() -> FakeDns:
    """A DNS without a network: what is not in its `zones` does not exist."""
    return FakeDns()


@pytest.fixture
def mailward_plugin(
    tmp_path: Path, mailward_clock: FakeClock, mailward_dns: FakeDns
) -> Callable[..., Loaded]:
    """Give `mailward_plugin(PATH, yaml)`: that plugin in a real chain. Relative paths start at `tmp_path`."""

    def load(plugin: Path, yaml: str = "") -> Loaded:
        bench = Bench(tmp_path, Services(mailward_clock, mailward_dns, Counters(mailward_clock)))
        return Loaded(bench, bench.add(plugin), yaml)

    return load


@pytest.fixture
def mailward_gateway(tmp_path: Path, mailward_dns: FakeDns) -> Iterator[Callable[..., Running]]:
    """Give `mailward_gateway(*PATHS, yaml=...)`: a whole gateway with these plugins, on a free port."""
    with contextlib.ExitStack() as stack:

        def start(*plugins: Path, yaml: str = "") -> Running:
            bench = Bench(tmp_path)
            for plugin in plugins:
                bench.add(plugin)
            return stack.enter_context(Running(tmp_path, yaml, Clock(), mailward_dns))

        yield start
