"""A home counts where only root and its account say which folder that is: whoever can, can be anybody."""

import os
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import pytest
from errands import deliver

from gateway.accounts.ownership import owned, refuse_changeable
from gateway.errors import AgentError

CHANGEABLE = "and nobody else may write it"


@pytest.fixture
def evil(door, users):
    """Give a folder that all may read, with a program in its `.qmail`, and where that says who it was."""
    out = door.base / "out"
    out.mkdir()
    out.chmod(0o1777)

    def make(owner, path):
        path.mkdir()
        path.chmod(0o755)
        (path / ".qmail").write_text(f"|id -u >> {out}/ran\n")
        for one in (path, path / ".qmail"):
            os.chown(one, *users[owner][2:4])
        return path

    make.ran = lambda: (out / "ran").read_text() if (out / "ran").exists() else None
    return make


def as_user(users, name, command):
    account = users[name]
    become = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    subprocess.run([*become, "sh", "-ec", command], check=True)


@pytest.fixture
def state(door, users):
    """Give a folder as the state folder is: the gateway's own."""
    made = door.base / "state"
    made.mkdir()
    made.chmod(0o755)
    os.chown(made, *users[door.gateway][2:4])
    return made


def test_a_link_that_the_gateway_can_turn_makes_it_nobody(door, users, state, evil):
    door.plan["accounts"]["alias"] = [str(state / "alias"), None, None]
    door.start()
    own = evil(door.gateway, state / "evil")
    as_user(users, door.gateway, f"ln -s {users[door.ann].pw_dir} {state}/alias")
    said = []
    asking = Thread(target=lambda: said.append(door.account("alias", state / "alias", deliver("alias"))))
    asking.start()
    # A child would take longer to start.
    time.sleep(0.05)
    as_user(users, door.gateway, f"ln -sfn {own} {state}/alias")
    asking.join()
    assert (CHANGEABLE in said[0]["error"], evil.ran()) == (True, None)


def test_a_home_that_the_gateway_can_rename_is_nobodys(door, users, state, evil):
    uid, gid = users[door.ann][2:4]
    evil(door.ann, state / "alias")
    door.plan["accounts"]["alias"] = [str(state / "alias"), uid, gid]
    door.start()
    as_user(users, door.gateway, f"mv {state}/alias {state}/old")
    evil(door.gateway, state / "alias")
    said = door.account("alias", state / "alias", deliver("alias"))
    assert (CHANGEABLE in said["error"], evil.ran()) == (True, None)


def test_who_owns_a_folder_on_the_way_becomes_nobody_else(door, users, evil):
    home = Path(users[door.joe].pw_dir)
    mode = home.stat().st_mode
    home.chmod(0o755)
    shop = home / "shop"
    try:
        real = evil(door.joe, home / "real")
        door.plan["accounts"]["virtual"]["shop"] = [str(shop), None, None]
        door.plan["accounts"]["virtual"]["given"] = [str(shop), *users[door.joe][2:4]]
        door.start()
        as_user(users, door.joe, f"ln -s {users[door.ann].pw_dir} {shop}")
        said = []
        asking = Thread(target=lambda: said.append(door.account("shop", shop, deliver("shop"))))
        asking.start()
        time.sleep(0.05)
        as_user(users, door.joe, f"ln -sfn {real} {shop}")
        asking.join()
        assert ("give its uid and gid" in said[0]["error"], evil.ran()) == (True, None)
        # By its uid it is joe's own, and what is joe's to change may be on the way.
        assert door.account("given", shop, deliver("given"))["result"] == "delivered"
        assert evil.ran() == f"{users[door.joe].pw_uid}\n"
    finally:
        shutil.rmtree(home / "real")
        shop.unlink(missing_ok=True)
        home.chmod(mode & 0o777)


def test_roots_links_are_followed_and_of_a_sticky_folder_only_what_is_given_counts(door, users):
    uid, gid = users[door.joe][2:4]
    sticky = door.base / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    for folder in (door.base, sticky):
        (folder / "home").mkdir()
        os.chown(folder / "home", uid, gid)
        (folder / "link").symlink_to("home")
    (door.base / "over").symlink_to(sticky / "link")
    for path in (door.base / "home", door.base / "link"):
        assert owned(path).st_uid == uid
    for path in (sticky / "home", sticky / "link", door.base / "over"):
        assert refuse_changeable(path, uid) == path.resolve()
        with pytest.raises(AgentError, match=CHANGEABLE):
            owned(path)


@pytest.mark.parametrize(
    ("owner", "mode", "fine"),
    [
        ("joe", 0o775, True),
        ("joe", 0o777, False),
        ("root", 0o755, True),
        ("root", 0o775, False),
        ("ann", 0o700, False),
        ("gateway", 0o700, False),
    ],
)
def test_nobody_else_may_write_a_home(door, users, owner, mode, fine):
    whose = {"root": 0, **{name: users[getattr(door, name)].pw_uid for name in ("ann", "joe", "gateway")}}
    home = door.base / "home"
    home.mkdir()
    home.chmod(mode)
    os.chown(home, whose[owner], -1)
    with nullcontext() if fine else pytest.raises(AgentError, match=CHANGEABLE):
        refuse_changeable(home, whose["joe"])
