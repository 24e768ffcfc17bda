"""A call to the disk fails, whichever: the sender hears 4xx, or the message arrives."""

import pytest
from injector import ERRORS
from sites import Site, folder
from test_steps import STORES

#: A small message for here and elsewhere, one that is a file, and one that gives birth to another.
KINDS = ("both", "big", "forward")


async def failed(zygote, error, kind, moments, store=""):
    """Let the call at each moment fail, until none is left to fail; gives the numbers."""
    replies, refused = [], set()
    with folder() as base:
        site = Site(base, zygote, store)
        async with site.running():
            for nth in moments:
                reply, happened = await site.failing(error, nth, f"{kind}-{nth}")
                replies.append(reply)
                refused |= {f"{kind}-{nth}"} if reply.startswith("4") else set()
                assert reply[:1] in ("", "2", "4"), f"{error} {nth}: {reply}"
                if not happened:
                    break
            await site.drained()
        site.judged()
        # Who heard 4xx sends it again: then it must not come twice.
        assert refused.isdisjoint(token for tokens in site.found().values() for token in tokens)
    taken = sum(reply.startswith("250") for reply in replies)
    return {"failures": len(replies) - 1, "taken": taken, "refused": len(replies) - taken, "lost": 0}


async def test_a_failed_fsync_is_a_refusal_or_does_no_harm(zygote):
    assert (await failed(zygote, "fsync", "big", [1, 2, 4]))["lost"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", ERRORS)
async def test_no_failed_call_loses_mail(zygote, settings, error, kind, store, numbers):
    with settings(store) as more:
        found = await failed(zygote, error, kind, range(1, 1000), more)
    assert found["failures"] > 0
    numbers(f"{store}: {error}, {kind}", **found)
