"""Becoming a user: it is seen to have worked, and only the gateway's own folder is handed over before."""

import os
import pwd

import pytest

from gateway.errors import ConfigError
from gateway.partition.privilege import become, give_state

UNCHANGED = 2**32 - 1


@pytest.mark.parametrize(("uid", "gid"), [(UNCHANGED, 61002), (61002, UNCHANGED), (UNCHANGED, UNCHANGED)])
def test_who_stays_root_hears_of_it(uid, gid):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            become(uid, gid)
        except OSError:
            code = 7
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.fixture
def nobody():
    return pwd.getpwnam("nobody")


@pytest.mark.parametrize("guarded", [True, False])
def test_the_state_is_made_and_handed_over(tmp_path, nobody, guarded):
    state = tmp_path / "lib" / "state"
    for _ in range(2):
        give_state(state, nobody, guarded=guarded)
        assert (state.stat().st_uid, state.parent.stat().st_uid) == (nobody.pw_uid, 0)


def test_a_folder_of_roots_that_a_users_link_leads_to_is_not_handed_over(tmp_path, nobody):
    victim, users = tmp_path / "victim", tmp_path / "users"
    victim.mkdir()
    users.mkdir()
    (users / "var").symlink_to(victim)
    (users / "folder").symlink_to(tmp_path)
    (users / "none").symlink_to(tmp_path / "none")
    for path in (users, *users.iterdir()):
        os.chown(path, 61003, -1, follow_symlinks=False)
    refused = [(users / "var", False), (users / "none", False)]
    refused += [(users / name, True) for name in ("var", "none", "folder/victim", "folder/none", "new")]
    for state, guarded in refused:
        with pytest.raises(ConfigError, match=r"gateway\.state: "):
            give_state(state, nobody, guarded=guarded)
    assert victim.stat().st_uid == 0
    assert not (tmp_path / "none").exists()


def test_a_link_of_roots_is_followed(tmp_path, nobody):
    (tmp_path / "disk").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "disk")
    give_state(tmp_path / "state", nobody, guarded=True)
    assert (tmp_path / "disk").stat().st_uid == nobody.pw_uid


def test_what_is_anothers_or_in_use_is_a_persons_to_sort_out(tmp_path, nobody):
    (tmp_path / "mail").touch()
    with pytest.raises(ConfigError, match="chown -R nobody"):
        give_state(tmp_path, nobody, guarded=True)
    (tmp_path / "others").mkdir()
    os.chown(tmp_path / "others", 61003, -1)
    with pytest.raises(ConfigError, match="belongs to uid 61003: run chown -R nobody"):
        give_state(tmp_path / "others", nobody, guarded=True)
