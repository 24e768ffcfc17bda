"""Every fault at every stage under every isolation: no door opens, and the next call is answered within 1 s.

What an inline plugin can do to its whole worker (spin, exit, memory) is in test_frozen.py.
"""

import asyncio
import time

import pytest

from gateway import Stages, events
from gateway.chain import FAULT
from gateway.hookspecs import SPECS
from gateway.isolation import process
from gateway.testing import Bench, Letter, delivery, session
from gateway.testing.replay import calls

STAGES = [name for name, spec in SPECS.items() if spec.kind != "life"]
#: (isolation, fault) -> what the plugin does; a plain `def` cannot be ended inline, so there it awaits.
FAULTS = {
    ("inline", "raise"): "{}['missing']",
    ("inline", "hang"): "await asyncio.sleep(3600)",
    ("inline", "exit"): "raise SystemExit(3)",
    ("thread", "raise"): "{}['missing']",
    ("thread", "hang"): "while flag.exists(): time.sleep(0.01)",
    ("thread", "exit"): "raise SystemExit(3)",
    ("thread", "spin"): "while flag.exists(): pass",
    ("thread", "memory"): "raise MemoryError(len(bytearray(1 << 30)))",
    ("process", "raise"): "{}['missing']",
    ("process", "hang"): "time.sleep(3600)",
    ("process", "exit"): "os._exit(3)",
    ("process", "spin"): "while True: pass",
    ("process", "memory"): "bytearray(1 << 30)",
}
#: Here no deadline ends a call, or the isolation is refused (see test_threads.py).
LEFT_OUT = {
    "inline": {"hang": {"deliver"}},
    "thread": {"hang": {"deliver"}, "spin": {"deliver"}},
    "process": {},
}
REFUSED = {"inline": set(), "thread": {"open_queue"}, "process": {"open_queue", "deliver"}}


def source(stages, isolation, fault):
    kind = "async def" if "await" in fault else "def"
    hooks = [
        f"    @hookimpl\n    {kind} {name}(self):\n        flag = self.site.state / 'fault'\n"
        f"        if flag.exists():\n            {fault}\n"
        for name in stages
        if name not in REFUSED[isolation]
    ]
    return "import asyncio, os, time\nfrom gateway import Plugin, hookimpl\nclass F(Plugin):\n" + "".join(
        hooks
    )


def arguments(stage):
    if stage in ("deliver", "open_queue", "event", "authenticate"):
        given = {
            "deliver": (delivery(),),
            "event": (events.SessionClosed(),),
            "authenticate": (session(), None),
        }
        return given.get(stage, ())
    return next(args for name, _, args in calls(Letter()) if name == stage)


async def matrix(tmp_path, isolation, fault, stages):
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path)
    bench.write({"faulty": source(stages, isolation, FAULTS[isolation, fault])})
    chain = bench.build(f"faulty: {{isolation: {isolation}, deadline: 0.3s}}").chain
    await chain.life("faulty", Stages.startup)
    left_out = REFUSED[isolation] | LEFT_OUT[isolation].get(fault, set())
    wrong = []
    try:
        for stage in (one for one in stages if one not in left_out):
            wrong += [f"{stage}: {text}" for text in await one_stage(chain, tmp_path / "state/fault", stage)]
    finally:
        await chain.life("faulty", Stages.shutdown, quiet=True)
    assert wrong == []


async def one_stage(chain, flag, stage):
    hook, given = getattr(Stages, stage), arguments(stage)
    flag.touch()
    answer = await chain.ask_plugin("faulty", hook, *given)
    if answer.value != (FAULT if SPECS[stage].kind == "decide" else None) or not answer.failed:
        wrong = [f"says {answer}"]
    else:
        wrong = []
    flag.unlink()
    began = time.monotonic()
    await chain.ask_plugin("faulty", hook, *given)
    if time.monotonic() - began > 1:
        wrong.append(f"the next call took {time.monotonic() - began:.1f} s")
    while (await chain.ask_plugin("faulty", hook, *given)).failed:
        if time.monotonic() - began > 20:
            return [*wrong, "it never came back"]
        await asyncio.sleep(0.02)
    return wrong


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Start a process again at once, how often it may end here."""
    monkeypatch.setattr(process, "PAUSES", (0.0,))


@pytest.mark.parametrize("isolation", ["inline", "thread", "process"])
async def test_a_hang_at_mail(tmp_path, isolation):
    await matrix(tmp_path, isolation, "hang", ["mail"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("isolation", "fault"), FAULTS)
async def test_a_fault_at_every_stage(tmp_path, isolation, fault):
    await matrix(tmp_path, isolation, fault, STAGES)
