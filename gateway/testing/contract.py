"""What every plugin keeps to, and what the chain guarantees around it: one call in a plugin's test."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import deque
from collections.abc import MutableMapping, MutableSequence, MutableSet
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gateway.chain import FAULT, Chain
from gateway.counters import Counters
from gateway.hookspecs import SPECS, Stages
from gateway.message import Message
from gateway.plugin import Services
from gateway.testing.build import Bench, transaction
from gateway.testing.fakes import FakeClock, FakeDns
from gateway.testing.replay import Letter, calls, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.loader import Generation

#: Mail at the edge of what is legal: nothing in it may make a plugin fail.
LETTERS = (
    Letter(),
    Letter(Message(b""), "", ("postmaster",), ip="2001:db8::7", helo=""),
    Letter(Message.parse(b"\n"), "", ("info@example.org", "INFO@EXAMPLE.ORG")),
    Letter(Message.parse(b"Subject: no empty line"), "joe@sender.example", ("a@b",)),
    Letter(Message.parse(b"no field\n: none\nX: \xff\xfe\n y\n\n\x00\xff\r\n.\n"), '"a b"@example.com'),
    Letter(Message.parse(b"Content-Type: multipart/mixed; boundary=\n\n--\n--\n----\n"), "a@[192.0.2.7]"),
    Letter(Message.parse(b"Content-Type: multipart/mixed; boundary=x\n\n--x\n--x\nA"), "ä@example.org"),
)
#: How long a plugin may take over any of them.
DEADLINE = 2.0
_MUTABLE = (MutableMapping, MutableSequence, MutableSet, deque)


async def contract(plugin: Path, yaml: str = "", base: Path | None = None) -> None:
    """Check a plugin, a file or a folder, with this configuration. Raises AssertionError with every breach.

    Relative paths in the configuration start at `base`, which is also where its state lives.

    The plugin keeps to: an instance for each configuration and nothing kept in the module; `shutdown` after
    `startup`, and alone after a `startup` that failed; an answer of the stage's own kind, in time and without
    an error, to mail at the edge of what is legal, to a client that has gone and to mail born here; answers
    also from an old instance after a reload, while its last sessions end.

    The chain guarantees, whatever the plugin does: a raise, a hang or junk opens no door and is told; what is
    cancelled ends.
    """
    with tempfile.TemporaryDirectory(prefix="mailward-contract-") as folder:
        trial = _Trial(plugin, yaml, base or Path(folder))
        wrong = [*await trial.kept(), *await trial.guaranteed()]
    assert not wrong, f"{trial.stem} breaks the contract of a plugin:\n" + "\n".join(wrong)  # noqa: S101


class _Trial:
    """One plugin on one bench."""

    def __init__(self, plugin: Path, yaml: str, folder: Path) -> None:
        clock = FakeClock()
        self.bench = Bench(folder, Services(clock, FakeDns(), Counters(clock)))
        self.stem = self.bench.add(plugin)
        self.yaml = yaml
        (folder / "state").mkdir(exist_ok=True)

    async def kept(self) -> list[str]:
        """Give what the plugin does not keep to."""
        wrong = await self._life(self.bench.build(self.yaml), Stages.shutdown)
        first = self.bench.build(self.yaml)
        modules = [sys.modules[name] for name in first.plugins[self.stem].modules]
        before = _values(modules)
        wrong += await self._life(first, Stages.startup)
        wrong += await self._answers(first, "")
        busy = asyncio.create_task(self._answers(first, " while a reload went on"))
        await asyncio.sleep(0)
        second = self._reloaded(first)
        if second.plugins[self.stem].instance is first.plugins[self.stem].instance:
            wrong.append("two configurations share one instance")
        wrong += await self._life(second, Stages.startup)
        self.bench.loader.retire(first, second)
        wrong += await busy
        wrong += await self._answers(first, " of the old instance after a reload")
        wrong += await self._life(first, Stages.shutdown)
        wrong += await self._answers(second, " after the old instance was shut down")
        wrong += await self._life(second, Stages.shutdown)
        wrong += [f"the module keeps state in {name}" for name in _changed(before, _values(modules))]
        return list(dict.fromkeys(wrong))

    async def guaranteed(self) -> list[str]:
        """Give where the chain does not keep a fault of this plugin to itself."""
        generation = self.bench.build(self.yaml)
        wrong = []
        for stage, step in self._steps(generation):
            for name, fault in (("raises", _raise), ("hangs", _hang), ("answers junk", _junk)):
                if name == "answers junk" and SPECS[stage].kind in ("observe", "life"):
                    continue
                chain = _with_fault(generation.chain, stage, self.stem, fault)
                answer = await chain.ask_plugin(self.stem, getattr(Stages, stage), *_arguments(stage))
                silent = SPECS[stage].kind != "decide"
                if answer.failed == step.skip or answer.value != (None if silent or step.skip else FAULT):
                    wrong.append(f"{stage}: when it {name}, the chain says {answer.value!r}")
            if not await _ends(
                _with_fault(generation.chain, stage, self.stem, _hang, 60.0), stage, self.stem
            ):
                wrong.append(f"{stage}: a client that leaves does not end it")
        return wrong

    def _steps(self, generation: Generation) -> Iterator[tuple[str, Any]]:
        for stage, _, _ in calls(Letter()):
            for step in generation.chain.steps[stage]:
                if step.plugin == self.stem:
                    yield stage, step

    def _reloaded(self, before: Generation) -> Generation:
        """Build the next generation as a reload does after a change of the plugin's file."""
        path = before.plugins[self.stem].found.path
        path.write_text(path.read_text("utf-8") + "\n", "utf-8")
        return self.bench.build(self.yaml, before)

    async def _life(self, generation: Generation, hook: Any) -> list[str]:
        try:
            await generation.chain.life(self.stem, hook)
        except Exception as error:  # noqa: BLE001 - whatever it raises is told
            return [f"{hook.spec.name} raised {error!r}"]
        return []

    async def _answers(self, generation: Generation, when: str) -> list[str]:
        """Ask everything; give what failed."""
        chain = generation.chain
        told = len(self.bench.emitted)
        steps = {
            stage: [replace(step, deadline=min(step.deadline, DEADLINE), dry_run=False) for step in all_]
            for stage, all_ in chain.steps.items()
        }
        timed = Chain(chain.specs, steps, self.bench.emitted.append)
        for letter in LETTERS:
            await replay(timed, letter, self.stem)
        await self._odd(timed)
        await chain.drain()
        faults = [event for event in self.bench.emitted[told:] if event.plugin == self.stem]
        return [
            f"{getattr(event, 'stage', '')}{when}: {getattr(event, 'error', '') or 'no answer in time'}"
            for event in faults
            if event.NAME in ("plugin.failed", "plugin.timed_out")
        ]

    async def _odd(self, chain: Chain) -> None:
        """Ask for a client that has gone, and for mail that was born here and has no session."""
        gone = transaction(to=["info@example.org"])
        if gone.session is not None:
            gone.session.closed = True
        born = transaction("", to=["info@example.org"], session=None, origin="bounce")
        for made in (gone, born):
            for stage in ("incoming", "message"):
                await chain.ask_plugin(self.stem, getattr(Stages, stage), made, Letter().content.copy())
        for stage in ("reset", "disconnect"):
            about = gone if stage == "reset" else gone.session
            await chain.ask_plugin(self.stem, getattr(Stages, stage), about)


def _arguments(stage: str) -> tuple[Any, ...]:
    return next(args for name, _, args in calls(Letter()) if name == stage)


def _with_fault(
    chain: Chain, stage: str, stem: str, fault: Callable[..., Any], deadline: float = 0.01
) -> Chain:
    """Give the chain with one step that fails in place of the plugin's own."""
    steps = {
        name: [
            replace(step, call=fault, deadline=deadline, dry_run=False)
            if (name, step.plugin) == (stage, stem)
            else step
            for step in all_
        ]
        for name, all_ in chain.steps.items()
    }
    return Chain(chain.specs, steps, lambda _: None)


async def _ends(chain: Chain, stage: str, stem: str) -> bool:
    """Tell whether a call that hangs ends with the task that asked."""
    task = asyncio.create_task(chain.ask_plugin(stem, getattr(Stages, stage), *_arguments(stage)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=DEADLINE)
    return task.cancelled()


def _raise(*_: Any) -> None:
    raise RuntimeError("the contract asks what happens then")


async def _hang(*_: Any) -> None:
    await asyncio.Event().wait()


def _junk(*_: Any) -> object:
    return object()


def _values(modules: Iterable[ModuleType]) -> dict[str, tuple[Any, str]]:
    """Write down what a plugin's modules hold: each name, its object, and what is in one that can change."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": (
            value,
            repr(value) if isinstance(value, _MUTABLE) else "",
        )
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("__") and not isinstance(value, ModuleType)
    }


def _changed(before: dict[str, tuple[Any, str]], after: dict[str, tuple[Any, str]]) -> list[str]:
    return [
        name.partition(".")[2]
        for name in after
        if name not in before or before[name][0] is not after[name][0] or before[name][1] != after[name][1]
    ]
