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
#: More settings for each store that a gateway may have.
STORES = {"sqlite": ""}
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


async def killed(zygote, steps, store=""):
    """Kill one site at all of these steps, one after the other; gives the numbers."""
    with folder() as base:
        site = Site(base, zygote, store)
        async with site.running():
            for step, nth in steps:
                await site.killed(step, nth, "look" if step == "queue.release" else "serve")
            await site.drained()
        return site.judged()


async def test_a_kill_at_some_steps_loses_nothing(zygote):
    numbers = await killed(zygote, [(step, 2) for step in QUICK])
    assert numbers["kills"] == len(QUICK)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("step", STEPS)
async def test_kills_at_every_step_lose_nothing(zygote, step, store, numbers):
    if step in FIRST:
        found = [await killed(zygote, [(step, 1)], STORES[store]) for _ in range(KILLS)]
        total = {key: sum(one[key] for one in found) for key in found[0]}
    else:
        passages = [1] if step in START else [1, 1, 2, 3, 6, 12]
        moments = [(step, random.choice(passages)) for _ in range(KILLS)]
        # The journal has a torn end, and the queue something to sweep, after a life under load.
        first = [] if step not in START else [("queue.commit", 40)]
        total = await killed(zygote, first + moments, STORES[store])
    numbers(f"{store}: {step}", **total)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("store", STORES)
async def test_random_kills_lose_nothing(zygote, store, numbers):
    kinds = ("local", "remote", "both", "forward")
    with folder() as base:
        site = Site(base, zygote, STORES[store], kinds)
        async with site.running():
            while len(site.load.accepted) < MESSAGES:
                await site.killed_after(random.randint(1, 200))
                print(f"{len(site.load.accepted)} accepted, {site.kills} kills", end="\r", flush=True)
            await site.drained()
        numbers(f"{store}: at random", **site.judged())
