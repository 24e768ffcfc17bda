"""The group `dotqmail` of the vectors: what qmail-local did, against the function that delivers."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import vectors

from gateway import Account, Message

#: The ordinary user that homes belong to when root runs the tests: root could read everything.
USER = 65534
DATE = re.compile(rb"(?m)^(From \S+) [A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \d{4}$")
VARIABLES = (
    *("SENDER", "NEWSENDER", "RECIPIENT", "USER", "HOME", "LOCAL", "DEFAULT", "DTLINE", "RPLINE", "UFLINE"),
    *("HOST", "HOST2", "HOST3", "HOST4", "EXT", "EXT2", "EXT3", "EXT4"),
)
ENHANCED = re.compile(r"\(#(\d\.\d+\.\d+)\)")


@contextlib.contextmanager
def ordinary_user():
    """Be nobody for a while, programs that are started included."""
    if os.geteuid() != 0:
        yield
        return
    os.setresgid(USER, USER, 0)
    os.setresuid(USER, USER, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@pytest.fixture
def home():
    """A fresh home; not below pytest's own folder, which only its user may enter."""
    with ordinary_user():
        folder = Path(tempfile.mkdtemp(prefix="home-"))
        folder.chmod(0o755)
    yield folder
    folder.exists() and folder.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def fill(home, files):
    for name, wanted in files.items():
        path = home / name
        kind = wanted.get("kind", "file")
        if kind == "symlink":
            path.symlink_to(wanted["target"].replace("{HOME}", str(home)))
            continue
        if kind == "file":
            path.write_bytes(vectors.raw(wanted["content"]).replace(b"{HOME}", os.fsencode(home)))
        elif kind == "maildir":
            for folder in (path, path / "tmp", path / "new", path / "cur"):
                folder.mkdir(0o700)
        else:
            path.mkdir()
        path.chmod(
            int(wanted.get("mode", "0700" if kind == "maildir" else "0755" if kind == "dir" else "0644"), 8)
        )


def snapshot(home):
    return {
        str(path.relative_to(home)): (path.stat().st_mode & 0o7777, contents(path))
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def contents(path):
    try:
        return path.read_bytes()
    except PermissionError:
        return None


def maildirs(home):
    folders = {path.parent for name in ("new", "cur", "tmp") for path in home.rglob(name) if path.is_dir()}
    return {
        str(folder.relative_to(home)): sorted(
            vectors.as_text(path.read_bytes()) for path in (folder / "new").glob("*")
        )
        for folder in folders
    }


def changed_files(before, after, home):
    inside = re.compile(r"(^|/)(new|cur|tmp)/")
    return {
        name: {"mode": f"{mode:04o}", "content": masked(data, home)}
        for name, (mode, data) in after.items()
        if before.get(name) != (mode, data) and name != "env.out" and not inside.search(name)
    }


def masked(data, home):
    return vectors.as_text(DATE.sub(rb"\1 @DATE@", data).replace(os.fsencode(home), b"{HOME}"))


def environment(home):
    raw = (home / "env.out").read_bytes()
    pairs = dict(item.partition(b"=")[::2] for item in raw.split(b"\0") if item)
    found = {name: pairs.get(name.encode()) for name in VARIABLES}
    if found["UFLINE"]:
        found["UFLINE"] = DATE.sub(rb"\1 @DATE@", found["UFLINE"].rstrip(b"\n")) + b"\n"
    return {
        name: None if value is None else vectors.as_text(value.replace(os.fsencode(home), b"{HOME}"))
        for name, value in found.items()
    }


def job(case, home):
    given = {key: vectors.text(value) for key, value in case["input"]["args"].items()}
    execute = vectors.plugin_module("dot_qmail", "execute")
    program = vectors.plugin_module("dot_qmail", "program")
    return execute.Job(
        account=Account(given["user"], os.geteuid(), os.getegid(), str(home), given["dash"], given["ext"]),
        local=given["local"],
        host=given["domain"],
        sender=given["sender"],
        message=Message.parse(vectors.raw(case["input"]["message"])),
        default_delivery=given["default"].replace("{HOME}", str(home)),
        limits=program.Limits(20.0, threading.Event()),
        name="1700000000.case",
        birth=1700000000.0,
        now=1700000000.0,
        dry_run=case["input"].get("flags", [""])[-1] == "-n",
    )


def answer(case, home):
    given = case["input"]
    with ordinary_user():
        fill(home, given["files"])
        home.chmod(int(given.get("home_mode", "0755"), 8))
        if given.get("home_missing"):
            home.rmdir()
        before = snapshot(home)
        one = job(case, home)
        result = vectors.plugin_module("dot_qmail", "execute").perform(one)
        home.exists() and home.chmod(0o755)
        after = snapshot(home)
        found = {
            "exit": {"delivered": 0, "deferred": 111, "failed": 100}[result.result],
            "enhanced": (ENHANCED.findall(result.text) or [None])[-1],
            "did": [result.did[0], result.did[1], result.did[2]] if result.result == "delivered" else None,
            "files": changed_files(before, after, home),
            "maildirs": maildirs(home),
            "forwards": forwards(one, result),
        }
        if "env.out" in after:
            found["env"] = environment(home)
    if given.get("flags") and not one.dry_run:
        found["actions"] = []
    if one.dry_run:
        found["actions"] = [[action.kind, action.text] for action in result.actions]
        found["forwards"] = []
    return found


def forwards(one, result):
    """Give what goes on, as qmail's recorder saw it."""
    if not result.forwards:
        return []
    plugin = vectors.plugin_module("dot_qmail")
    birth = plugin._outcome(one, 0, result).births[0]
    recipients = [vectors.as_text(bytes(recipient)) for recipient in birth.recipients]
    message = vectors.as_text(bytes(birth.message))
    return [
        {
            "sender": vectors.as_text(bytes(birth.sender)),
            "recipients": recipients,
            "complete": True,
            "message": message,
        }
    ]


def inside(case):
    """Whether the gateway queues the forwards; where a program does, `test_local.py` runs the case."""
    return not case["input"].get("queue_exit")


@pytest.mark.parametrize("case", vectors.cases("dotqmail", inside))
def test_dotqmail(case, home, request):
    vectors.compare(request, "dotqmail", case, answer(case, home), case["expect"])
