"""The group `tools` of the vectors: each program as a process, in a fresh home."""

import os
import time

import programs
import pytest
import test_dotqmail
import test_inject
import vectors

CONTROL = {
    "me": "me.example\n",
    "defaulthost": "dh.example\n",
    "defaultdomain": "dd.example\n",
    "plusdomain": "pd.example\n",
    "idhost": "id.example\n",
}


@pytest.fixture
def home():
    with programs.open_folder() as base:
        folder = base / "home"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, test_dotqmail.USER, test_dotqmail.USER)
        yield folder


def prepare(case, home):
    """Lay out the case beside the home; gives the environment of the program."""
    (home.parent / "state" / "qmail-control").mkdir(parents=True)
    for name, line in CONTROL.items():
        (home.parent / "state" / "qmail-control" / name).write_text(line)
    record = home.parent / "record"
    record.mkdir()
    record.chmod(0o777)
    recorder = programs.recorder(record, case["input"].get("queue_exit", 0))
    given = {name: text(value, home) for name, value in case["input"]["env"].items()}
    return {**given, "QMAILQUEUE": str(recorder), "MAILWARD_STATE": str(home.parent / "state")}


def text(value, home):
    return vectors.raw(value).decode("utf-8", "surrogateescape").replace("{HOME}", str(home))


def fill(home, files):
    with test_dotqmail.ordinary_user():
        test_dotqmail.fill(home, files)
        for name, wanted in files.items():
            if "mtime" in wanted:
                os.utime(home / name, (time.time(), wanted["mtime"]))


def run(case, home, env):
    given = case["input"]
    (home.parent / "stdin").write_bytes(vectors.raw(given["message"]))
    (home.parent / "stdin").chmod(0o644)
    user = {}
    if os.geteuid() == 0:
        user = {"user": test_dotqmail.USER, "group": test_dotqmail.USER, "extra_groups": []}
    arguments = [text(one, home) for one in given["args"]]
    with (home.parent / "stdin").open("rb") as stdin:
        return programs.run(
            given["tool"], *arguments, env=env, stdin=stdin, capture_output=True, cwd=home, umask=0o22, **user
        )


def folders(home):
    return {
        str(path.relative_to(home)): f"{path.stat().st_mode & 0o7777:04o}"
        for path in home.rglob("*")
        if path.is_dir()
    }


def files(home):
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", vectors.cases("tools"))
def test_tools(case, home, request):
    env = prepare(case, home)
    fill(home, case["input"].get("files", {}))
    before, dirs = files(home), folders(home)
    done = run(case, home, env)
    after = files(home)
    wanted = dict(case["expect"])
    found = {
        "exit": done.returncode,
        "stdout": None if wanted["stdout"] is None else vectors.as_text(done.stdout),
        "stderr_lines": done.stderr.count(b"\n"),
        "queued": test_inject.record(home.parent / "record"),
        "dirs_created": sorted([name, mode] for name, mode in folders(home).items() if name not in dirs),
    }
    if "stderr" in wanted:
        found["stderr"] = vectors.as_text(done.stderr)
    changed = {name: vectors.as_text(data) for name, data in after.items() if before.get(name) != data}
    removed = sorted(before.keys() - after.keys())
    found.update({"files": changed} if changed else {}, **({"files_removed": removed} if removed else {}))
    vectors.compare(request, "tools", case, found, wanted)
