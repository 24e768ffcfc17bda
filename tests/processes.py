"""What tests of gateways in processes of their own share: a free port, and a journal without a gap."""

import contextlib
import random
import socket
from collections import defaultdict

from gateway.journal import read


def free_port():
    """Find a port that stays ours while nobody listens: below those that the kernel gives to clients."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def events_of(state):
    """Give all events of the journal in the order of time; no stream of it may have a gap."""
    found = list(read(state / "journal"))
    sequences = defaultdict(list)
    for one in found:
        sequences[one["stream"]].append(one["sequence"])
    for stream, numbers in sequences.items():
        assert numbers == list(range(1, len(numbers) + 1)), stream
    return found
