"""The container file, as far as it goes without images; test_container_built.py builds it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "contrib" / "container"


@pytest.fixture
def instructions():
    text = (FOLDER / "Containerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]


def test_its_instructions_are_known_and_what_it_copies_is_here(instructions):
    known = {
        "FROM",
        "RUN",
        "COPY",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {word for word, _ in instructions} <= known
    sources = [rest.split()[0] for word, rest in instructions if word == "COPY" and not rest.startswith("--")]
    assert sources
    assert all((CHECKOUT / source).exists() for source in sources)


def test_it_is_never_root_and_its_commands_are_ours(instructions):
    words = [word for word, _ in instructions]
    assert words.index("USER") < words.index("CMD")
    assert dict(instructions)["USER"] == "mailward"
    for word, rest in instructions:
        if word in ("CMD", "HEALTHCHECK"):
            command = json.loads(re.search(r"\[.*\]", rest)[0])
            assert command[0] == "mailward"
            done = run(*command[1:], "--help")
            assert done.returncode == 0, done.stderr


def test_its_configuration_is_right():
    done = run("check", "--conf", str(FOLDER / "conf.d"))
    assert done.returncode == 0, done.stdout + done.stderr


def run(*arguments):
    command = [sys.executable, "-m", "gateway.commands", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=50, check=False)
