"""A short run of each target of fuzzing: its corpus, inputs made of it by chance, and some led by coverage.

`make fuzz` runs them longer.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
#: How many inputs are made of the corpus; those that cost more are fewer.
MADE = 600
SLOWER = {"proxy_header": 40, "archive": 100, "yaml_settings": 150}


def corpus(name):
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def changed(chance, seeds):
    """Make another input: a few pieces are taken away, doubled or swapped, or an octet is changed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randrange(1, 5)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.randrange(12))
        other = chance.choice(seeds)
        place = chance.randrange(len(other) + 1)
        pieces = [
            b"",
            data[start:end] * 2,
            other[place : place + 12],
            bytes([chance.randrange(256)]),
            b"\r\n",
        ]
        data[start:end] = chance.choice(pieces)
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus(name):
    seeds = corpus(name)
    assert seeds
    for data in seeds:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_made_of_it(name):
    chance, seeds = random.Random(name), [*corpus(name), b""]
    for _ in range(SLOWER.get(name, MADE)):
        data = changed(chance, seeds)
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"the input: {data!r}")
            raise


def test_some_inputs_led_by_coverage():
    pytest.importorskip("atheris", reason="it has no wheel for this machine")
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
