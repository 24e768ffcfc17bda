"""Who may ask a gateway: the kernel says, by the socket's group and by who is at its other end."""

import grp
import os
import stat
import subprocess
import sys

import pytest

from gateway import console

ASK = """
import socket, sys
from pathlib import Path
from gateway.console import call
from gateway.errors import ControlError
with socket.socket(socket.AF_UNIX) as link:
    try:
        link.connect(sys.argv[1] + "/control")
    except OSError as error:
        print(type(error).__name__)
try:
    list(call(Path(sys.argv[1]), sys.argv[2]))
except ControlError as error:
    sys.exit(str(error))
"""


def ask(site, name, *groups):
    """Ask for a reload as a user of the system with these groups; gives the exit code and what was said."""
    user = site.users[name]
    done = subprocess.run(
        [sys.executable, "-c", ASK, site.state, "reload"],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=groups,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_sockets_are_open_to_whom_they_are_for(site):
    control, submit = ((site.state / one).stat() for one in ("control", "submit"))
    assert stat.S_IMODE(control.st_mode) == 0o660
    assert grp.getgrgid(control.st_gid).gr_name == console.GROUP
    assert stat.S_IMODE(submit.st_mode) == 0o666


def test_an_outsider_is_refused_by_the_kernel(site):
    code, said = ask(site, site.joe, site.users[site.ann].pw_gid)
    assert code == 1
    assert said.startswith("PermissionError\n")
    assert f"in {console.GROUP}" in said


@pytest.mark.parametrize(("who", "groups"), [("ann", [console.GROUP]), ("gateway", [])])
def test_a_member_of_the_group_and_the_gateways_user_are_served_by_name(site, who, groups):
    name = getattr(site, who)
    before = len(site.events())
    assert ask(site, name, *(grp.getgrnam(one).gr_gid for one in groups)) == (0, "")
    (loaded,) = site.until(lambda: [one for one in site.events()[before:] if one["event"] == "config.loaded"])
    assert loaded["actor"] == name


async def test_without_the_group_it_is_the_gateways_own_that_may_ask(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "GROUP", "mwtest-no-such-group")
    one = console.Console(None)
    await one.start(tmp_path)
    status = (tmp_path / "control").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getegid())
    await one.stop()
    assert not (tmp_path / "control").exists()
