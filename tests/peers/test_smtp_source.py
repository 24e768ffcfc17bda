"""Postfix's load generator sends."""

import subprocess
import time
from collections import Counter

import pytest
from peer import program

pytestmark = pytest.mark.peer("postfix")


def source(gateway, *options):
    return subprocess.run(
        [program("smtp-source"), "-M", "source.example", *options, f"127.0.0.1:{gateway.port}"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.timeout(120)
def test_a_thousand_messages_arrive_exactly_once(gateways):
    """20 sessions at a time, three recipients each."""
    gateway = gateways()
    gateway.start()
    began = time.monotonic()
    options = ("-m", "1000", "-s", "20", "-r", "3", "-f", "ann@sender.example", "-t", "u@example.org")
    done = source(gateway, *options)
    assert (done.returncode, done.stderr) == (0, "")
    accepted = time.monotonic() - began
    gateway.received(3000, patience=60)
    print(f"1000 messages accepted in {accepted:.1f} s, 3000 delivered in {time.monotonic() - began:.1f} s")
    counts = Counter((one["Message-Id"], one["Delivered-To"]) for one in gateway.maildir())
    assert len(counts) == 3000
    assert set(counts.values()) == {1}
    assert len({message for message, _ in counts}) == 1000
    gateway.idle()


@pytest.mark.parametrize("options", [("-d",), ("-l", "300000")], ids=["reused", "large"])
def test_other_ways_to_send(gateway, options):
    recipient = f"to{options[0]}@example.org"
    done = source(gateway, "-m", "20", "-s", "4", *options, "-f", "ann@sender.example", "-t", recipient)
    assert (done.returncode, done.stderr) == (0, "")
    gateway.received(20, having=f"Delivered-To: abc-{recipient}")


def test_without_a_greeting_it_is_refused(gateway):
    done = source(gateway, "-o", "-f", "ann@sender.example", "-t", "old@example.org")
    assert done.returncode != 0
    assert "503 5.5.1" in done.stderr
