"""docs/howto/migrate-from-qmail.md does what it says: its commands are run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import Settings
from gateway.settings.tree import Tree

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "migrate-from-qmail.md"
PROGRAM = """\
#!{python}
from gateway.commands import assembly, main
assembly.leave_root = lambda _: None  # others may not enter the test's folder
main()
"""


@pytest.fixture
def qmail(tmp_path):
    """An installation with one message for a host that is not there, in /var of the test's folder."""
    home = tmp_path / "var" / "qmail"
    for folder in ("control", "alias", "queue/mess/7", "queue/info/7", "queue/remote/7"):
        (home / folder).mkdir(parents=True)
    (home / "control" / "me").write_text("mx.example.org\n")
    (home / "control" / "rcpthosts").write_text("example.org\n")
    (home / "control" / "virtualdomains").write_text("example.org:alias-org\n")
    (home / "alias" / ".qmail-org-default").write_text("./Maildir/\n")
    (home / "queue" / "mess" / "7" / "30").write_text("Subject: old\n\nbody\n")
    (home / "queue" / "info" / "7" / "30").write_text("Fs@r.example\0")
    (home / "queue" / "remote" / "7" / "30").write_text("Tu@far.example\0Ddone@far.example\0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "tcp.smtp").write_text('127.:allow,RELAYCLIENT=""\n')
    (tmp_path / "addresses.txt").write_text("info@example.org\n")
    for path in (home / "alias", home / "alias" / ".qmail-org-default"):
        os.chown(path, os.geteuid() or 65534, -1)
    return home


@pytest.fixture
def shell(tmp_path):
    """Run lines as an admin does, with `mailward` in the PATH, and /var and /etc in the test's folder."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mailward"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(PAGE.parents[2])}

    def run(script):
        script = re.sub(r"/(var/qmail|etc)\b", rf"{tmp_path}/\1", script)
        done = subprocess.run(
            ["bash", "-e"],
            input=script,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_steps_take_an_installation_over(qmail, shell, tmp_path):
    take, compare, cut_over, put_away, roll_back = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    site = tmp_path / "etc" / "mailward"
    assert "no problem" in shell(take)
    assert "./Maildir/" in shell(compare)
    ways = [json.loads(line) for line in (tmp_path / "after.jsonl").read_text().splitlines()]
    assert f"{site}/control/virtualdomains:1" in json.dumps(ways)
    (site / "var").mkdir()
    assert "1 of 1 messages were added" in shell(cut_over)
    assert str(Settings.of(Tree.load(site / "conf.d")).listeners[0].address) == "*:25"
    assert "far.example" in shell(put_away)
    assert (qmail / "queue.taken-over" / "mess").is_dir()
    assert "u@far.example" in (left := shell(roll_back))
    assert "done@far.example" not in left
    assert str(Settings.of(Tree.load(site / "conf.d")).listeners[0].address) == "*:2525"
