"""What the tests of qmail's programs share with the conformance groups: how a program is run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import programs


@pytest.fixture
def base():
    with programs.open_folder() as folder:
        yield folder


@pytest.fixture
def gateway(base):
    """A gateway that runs for the test; `gateway.state` is what programs need to find it."""
    with programs.Running(base) as running:
        yield running
