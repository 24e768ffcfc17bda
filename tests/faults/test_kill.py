"""Many times kill -9 under load: what had its 250 arrives, whole and once."""

import asyncio
import os
import random
from collections import Counter

import pytest
from traffic import KINDS, Load, Sink, kind, text, token_of

#: A start takes most of a second, so the many are for `make test-faults`.
KILLS = [5, pytest.param(50, marks=pytest.mark.slow)]
SEED = int(os.environ.get("MAILWARD_SEED", "0")) or random.SystemRandom().randrange(10**6)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kills", KILLS)
async def test_kills_under_load_lose_nothing(gateway, kills):
    print(f"MAILWARD_SEED={SEED}")
    moments = random.Random(SEED)
    gateway.home(**{"sent-on": "&box@example.org\n"})
    sink, load = Sink(), Load(gateway.port, SEED)
    async with await asyncio.start_server(sink.serve, "127.0.0.1", 0) as server:
        gateway.configure(server.sockets[0].getsockname()[1])
        async with load.running():
            for sink.run in range(kills):
                await gateway.start()
                load.up.set()
                await asyncio.sleep(moments.uniform(0.0, 0.4))
                load.up.clear()
                await gateway.kill()
        sink.run = kills
        await gateway.start()
        await gateway.empty()
        assert await gateway.stop() == 0

    copies = sum(map(len, sink.copies.values()))
    print(f"{load.sent} begun, {len(load.accepted)} had their 250, {copies} copies at the sink")
    assert len(load.accepted) > kills
    _all_in_the_maildir(gateway, load.accepted)
    _all_at_the_sink(sink, load.accepted)
    _told_without_a_gap(gateway.events(), load.accepted)


def _all_in_the_maildir(gateway, accepted):
    found = gateway.delivered()
    copies = Counter(token_of(content) for content in found)
    assert {token for token in accepted if "far" not in KINDS[kind(token)][0]} <= copies.keys()
    assert [token for token, count in copies.items() if count > 1] == []
    assert all(content.endswith(text(token_of(content))) for content in found)


def _all_at_the_sink(sink, accepted):
    assert {token for token in accepted if "far@example.net" in KINDS[kind(token)]} <= sink.copies.keys()
    for token, copies in sink.copies.items():
        runs = [run for run, _ in copies]
        assert len(set(runs)) == len(runs), f"{token} came twice from one gateway: {runs}"
        assert all(content.endswith(text(token)) for _, content in copies)


def _told_without_a_gap(events, accepted):
    told = Counter(
        event["sender"].partition("@")[0]
        for event in events
        if event["event"] == "message.accepted" and event["origin"] == "smtp"
    )
    assert accepted <= told.keys()
    assert [token for token, count in told.items() if count > 1] == []
    born = {event["message"] for event in events if event["event"] == "message.accepted"}
    ended = {event["message"] for event in events if event["event"] == "message.finished"}
    assert born == ended
