"""The group `inject` of the vectors: qmail-inject with a recorder in the place of qmail-queue."""

import os
import re
import sys

import programs
import pytest
import vectors

from gateway.qmail import inject
from gateway.qmail.place import Place

MASKS = (
    (
        re.compile(rb"(?m)^((?:Resent-)?Date: )\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d -0000$"),
        rb"\1@DATE@",
    ),
    (re.compile(rb"<\d{14}\.\d+\.qmail@"), rb"<@MSGID@.qmail@"),
)
STAMP = re.compile(rb"-\d{9,11}\.\d+(?=-?@)")


def masked(data):
    for pattern, mask in MASKS:
        data = pattern.sub(mask, data)
    return STAMP.sub(b"-@STAMP@", data)


def record(folder):
    """Give what the recorder was handed, as the vectors write it."""
    if not (folder / "envelope").exists():
        return []
    raw = (folder / "envelope").read_bytes()
    if not raw.endswith(b"\0\0"):
        return []
    sender, *recipients = raw[:-2].split(b"\0")
    return [
        {
            "sender": vectors.as_text(masked(sender[1:])),
            "recipients": [vectors.as_text(one[1:]) for one in recipients],
            "message": vectors.as_text(masked((folder / "message").read_bytes())),
        }
    ]


def prepare(case, folder, home):
    """Lay out what the case has; gives the environment of the program."""
    for name, text in case["input"].get("home_files", {}).items():
        (home / name).write_bytes(vectors.raw(text))
    for name, text in case["input"].get("control", {}).items():
        (folder / "control").mkdir(exist_ok=True)
        (folder / "control" / name).write_bytes(vectors.raw(text))
    recorder = programs.recorder(folder, case["input"].get("queue_exit", 0))
    env = {
        name.encode(): vectors.raw(value).replace(b"{HOME}", os.fsencode(home))
        for name, value in case["input"]["env"].items()
    }
    return {**env, b"QMAILQUEUE": os.fsencode(recorder), b"PATH": b"/usr/bin:/bin"}


@pytest.fixture
def run_here(capfdbinary, tmp_path):
    """Call the program's own function, descriptor 0 being the message."""

    def run(env, arguments, message):
        (tmp_path / "stdin").write_bytes(message)
        before = os.dup(0)
        with (tmp_path / "stdin").open("rb") as file:
            os.dup2(file.fileno(), 0)
            try:
                code = inject.main("qmail-inject", arguments, Place(env, os.fsencode(tmp_path / "bin")))
            finally:
                os.dup2(before, 0)
                os.close(before)
        sys.stdout.flush()
        return code, capfdbinary.readouterr().out

    return run


@pytest.mark.parametrize("case", vectors.cases("inject"))
def test_inject(case, tmp_path, request, run_here):
    env = prepare(case, tmp_path, tmp_path)
    arguments = [vectors.raw(one).replace(b"{HOME}", os.fsencode(tmp_path)) for one in case["input"]["args"]]
    code, printed = run_here(env, arguments, vectors.raw(case["input"]["message"]))
    found = {"exit": code, "queued": record(tmp_path)}
    if printed:
        found["stdout"] = vectors.as_text(masked(printed))
    vectors.compare(request, "inject", case, found, case["expect"])
