"""kill -9 at every named step: what had its 250 arrives, whole; a repeat finds its own Maildir file."""

import ast
import os
import random
from pathlib import Path

import pytest
from sites import Site, folder

from gateway.faultpoint import STEPS

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MAILWARD_KILLS", "25"))
#: A random kill for every hundred of these.
MESSAGES = int(os.environ.get("MAILWARD_MESSAGES", "100000"))
#: Each store that a gateway may have, and the steps that only others have.
STORES = {
    "sqlite": {"body.part", "body.fetched"},
    "postgres": {"body.sync", "body.link", "body.folder", "body.kept", "queue.handed"},
}
PASSED = [(store, step) for store, others in STORES.items() for step in STEPS if step not in others]
#: Passed once in a life of the state folder: each kill needs a new one.
FIRST = {"queue.create", "queue.created", "journal.segment"}
#: Passed at the start alone.
START = {"journal.open", "queue.sweep", "body.sweep", "start.recover", "start.recovered", "start.serve"}
#: Passed often in a second, so that the n-th passage is somewhere in the traffic.
QUICK = [
    "body.folder",
    "queue.commit",
    "queue.committed",
    "maildir.folder",
    "remote.answered",
    "attempt.safe",
]


def test_every_step_is_passed_somewhere():
    named = {
        node.args[0].value
        for path in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "point"
    }
    assert named == STEPS.keys()
    assert len(STEPS) >= 40


@pytest.fixture
def killed(zygote, settings):
    """Give `await killed(store, steps)`: kill one site at all of these steps; gives the numbers."""

    async def kill(store, steps):
        # What is about to be given back: memory of ours, or claims that others may have.
        modes = {"queue.release": "look" if store == "sqlite" else "leave"}
        with folder() as base, settings(store) as more:
            site = Site(base, zygote, more)
            async with site.running():
                for step, nth in steps:
                    await site.killed(step, nth, modes.get(step, "serve"))
                await site.drained()
            return site.judged()

    return kill


async def test_a_kill_at_some_steps_loses_nothing(killed):
    numbers = await killed("sqlite", [(step, 2) for step in QUICK])
    assert numbers["kills"] == len(QUICK)


async def test_a_kill_at_some_steps_over_postgres_loses_nothing(killed):
    steps = [("queue.commit", 2), ("queue.claim", 2), ("body.fetched", 1)]
    numbers = await killed("postgres", steps)
    assert numbers["kills"] == len(steps)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("store", "step"), PASSED)
async def test_kills_at_every_step_lose_nothing(killed, step, store, numbers):
    if step in FIRST:
        found = [await killed(store, [(step, 1)]) for _ in range(KILLS)]
        total = {key: sum(one[key] for one in found) for key in found[0]}
    else:
        passages = [1] if step in START or step == "queue.release" else [1, 1, 2, 3, 6, 12]
        moments = [(step, random.choice(passages)) for _ in range(KILLS)]
        # The journal has a torn end, and the queue something to sweep, after a life under load.
        first = [] if step not in START else [("queue.commit", 40)]
        total = await killed(store, first + moments)
    numbers(f"{store}: {step}", **total)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("store", STORES)
async def test_random_kills_lose_nothing(zygote, settings, store, numbers):
    kinds = ("local", "remote", "both", "forward")
    with folder() as base, settings(store) as more:
        site = Site(base, zygote, more, kinds)
        async with site.running():
            while len(site.load.accepted) < MESSAGES:
                await site.killed_after(random.randint(1, 200))
                print(f"{len(site.load.accepted)} accepted, {site.kills} kills", end="\r", flush=True)
            await site.drained()
        numbers(f"{store}: at random", **site.judged())
