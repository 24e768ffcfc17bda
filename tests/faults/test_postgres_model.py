"""The protocol of claims, leases and ends, as a model: spin walks every path of it."""

import re
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("postgres_queue.pml")
pytestmark = [pytest.mark.slow, pytest.mark.peer("spin"), pytest.mark.peer("gcc")]


@pytest.fixture
def check(tmp_path):
    """Give `check(property, *definitions, fair=...)`: how many errors, and how many states."""

    def run(name, *definitions, fair=False):
        def call(*command):
            done = subprocess.run(
                command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=50
            )
            return done.stdout

        call("spin", "-a", *(f"-D{one}" for one in definitions), str(MODEL))
        call("gcc", "-O1", "-o", "pan", "pan.c")
        said = call("./pan", "-a", *(["-f"] if fair else []), "-N", name, "-c1")
        assert "max search depth too small" not in said
        errors = int(re.search(r"errors: (\d+)", said)[1])
        return errors, int(re.search(r"(\d+) states, stored", said)[1])

    return run


def test_no_reachable_state_loses_the_message(check):
    errors, states = check("kept", "REPEATS")
    print(f"{states} states")
    assert errors == 0
    assert states > 1000


def test_what_the_living_can_deliver_is_delivered(check):
    assert check("arrives", "REPEATS", fair=True)[0] == 0


def test_a_fault_in_the_midst_of_a_delivery_repeats_it_and_nothing_else_does(check):
    assert check("kept")[0] == 1
    assert check("kept", "PROMPT")[0] == 0
    assert check("kept", "CALM")[0] == 0
