"""Cases of the group `dotqmail` in which a queueing program refuses forwards: qmail-local as a process."""

import os

import programs
import pytest
import test_dotqmail
import test_inject
import vectors


@pytest.fixture
def base():
    with programs.open_folder() as folder:
        for name in ("home", "record"):
            (folder / name).mkdir()
            os.chown(folder / name, programs.OWNER, -1)
        yield folder


@pytest.mark.parametrize("case", vectors.cases("dotqmail", lambda case: not test_dotqmail.inside(case)))
def test_local(case, base, request):
    given, home = case["input"], base / "home"
    with test_dotqmail.ordinary_user():
        test_dotqmail.fill(home, given["files"])
        home.chmod(int(given.get("home_mode", "0755"), 8))
    before = test_dotqmail.snapshot(home)
    done = run(given, home, programs.recorder(base / "record", given["queue_exit"]))
    printed = done.stdout.decode()
    found = {
        "exit": done.returncode,
        "enhanced": (test_dotqmail.ENHANCED.findall(printed) or [None])[-1],
        "did": None if done.returncode else [int(n) for n in printed.split()[1].split("+")],
        "files": test_dotqmail.changed_files(before, test_dotqmail.snapshot(home), home),
        "maildirs": test_dotqmail.maildirs(home),
        "forwards": [{**one, "complete": True} for one in test_inject.record(base / "record")],
    }
    vectors.compare(request, "dotqmail", case, found, case["expect"])


def run(given, home, recorder):
    words = {key: vectors.text(value).replace("{HOME}", str(home)) for key, value in given["args"].items()}
    order = ("user", "home", "local", "dash", "ext", "domain", "sender", "default")
    arguments = [{**words, "home": str(home)}[key] for key in order]
    user = {"user": programs.OWNER, "extra_groups": []} if os.geteuid() == 0 else {}
    env = {**given.get("env", {}), "QMAILQUEUE": str(recorder)}
    message = vectors.raw(given["message"])
    return programs.run("qmail-local", *arguments, env=env, input=message, capture_output=True, **user)
