import os
import pwd
from pathlib import Path

import pytest

from gateway import ConfigError, Stages
from gateway.testing import Bench
from gateway.testing.cdb import make_cdb


async def account(tmp_path, conf, local):
    return await Bench(tmp_path).build(conf).chain.ask(Stages.account, local, "example.org")


def split(answer):
    return answer.value and (answer.value.user, answer.value.dash, answer.value.ext)


@pytest.mark.parametrize(
    ("local", "wanted"),
    [
        ("abc", ("abc", "", "")),
        ("abc-Info", ("abc", "-", "Info")),
        ("abc-", ("abc", "-", "")),
        ("abc-x-y", ("abc-x", "-", "y")),
        ("abcd", None),
        ("ABC", None),
        ("plus-joe+tag", ("plus", "-", "joe-tag")),
        ("plus+tag", ("plus", "-", "tag")),
        ("abc-joe+tag", ("abc", "-", "joe+tag")),
        ("", None),
    ],
)
async def test_virtual_accounts_own_their_name_and_what_follows_a_dash(tmp_path, local, wanted):
    conf = """
accounts:
  virtual:
    abc: {home: a, uid: 5, gid: 6}
    abc-x: {home: x, uid: 5, gid: 6}
    plus: {home: p, uid: 5, gid: 6, break: "+"}
"""
    assert split(await account(tmp_path, conf, local)) == wanted


@pytest.mark.parametrize(
    ("local", "wanted"),
    [
        ("joe+tag", ("joe", "-", "tag")),
        ("joe-tag", ("joe", "-", "tag")),
        ("joe-info+x", ("joe", "-", "info-x")),
        ("old-a+b", ("old", "-", "a+b")),
        ("old+b", None),
    ],
)
async def test_break_is_that_of_all_accounts_unless_one_has_its_own(tmp_path, local, wanted):
    conf = """
accounts:
  break: "+"
  virtual: {joe: {home: a, uid: 5, gid: 6}, old: {home: b, uid: 5, gid: 6, break: "-"}}
"""
    assert split(await account(tmp_path, conf, local)) == wanted


async def test_uid_and_gid_are_those_of_the_home_unless_given(tmp_path):
    (tmp_path / "a").mkdir()
    found = (await account(tmp_path, "accounts: {virtual: {abc: {home: a}}}", "abc")).value
    assert (found.uid, found.gid, found.home) == (os.getuid(), os.getgid(), str(tmp_path / "a"))
    assert found.rule == "conf.d/site.yaml:1"


async def test_a_missing_home_is_a_doubt(tmp_path):
    answer = await account(tmp_path, "accounts: {virtual: {abc: {home: a}}}", "abc")
    assert answer.failed
    assert answer.value is None


async def test_assign_comes_first_and_alias_last(tmp_path):
    (tmp_path / "assign").write_text("=abc:ann:7:8:/srv/ann:::\n+list-:sam:9:9:/srv/sam:-:lists-:\n.\n")
    conf = """
accounts:
  assign: assign
  virtual: {abc: {home: a, uid: 5, gid: 6}}
  alias: {home: /srv/alias, uid: 4, gid: 4}
"""
    assert split(await account(tmp_path, conf, "ABC")) == ("ann", "", "")
    assert split(await account(tmp_path, conf, "list-Big")) == ("sam", "-", "lists-Big")
    assert split(await account(tmp_path, conf, "abc-x")) == ("abc", "-", "x")
    assert split(await account(tmp_path, conf, "Else")) == ("alias", "-", "Else")
    assert (await account(tmp_path, conf, "list-x")).value.rule == f"{tmp_path}/assign:2"


@pytest.mark.parametrize(
    ("text", "line"), [("=a:b:1:1:/h:-:\n.\n", 1), ("=a:b:1:1:/h:-::\n", 2), (":x:b:1:1:/h:-::\n.\n", 1)]
)
def test_a_broken_assign_file_refuses_the_start_with_its_line(tmp_path, text, line):
    (tmp_path / "assign").write_text(text)
    with pytest.raises(ConfigError, match=f"assign:{line}: "):
        Bench(tmp_path).build("accounts: {assign: assign}")


async def test_no_system_user_has_mail_unless_asked_for_and_root_never(tmp_path):
    name = pwd.getpwuid(os.getuid()).pw_name
    assert (await account(tmp_path, "", name)).value is None
    assert (await account(tmp_path, "accounts: {system: true}", "root-x")).value is None


async def test_a_system_user_whose_home_is_theirs(tmp_path):
    for user in pwd.getpwall():
        if user.pw_uid and user.pw_name.islower() and "-" not in user.pw_name:
            try:
                owned = Path(user.pw_dir).stat().st_uid == user.pw_uid
            except OSError:
                continue
            if owned:
                break
    else:
        pytest.skip("no user of this machine owns a home")
    conf = f'accounts: {{system: true, floor: {user.pw_uid}, break: "+"}}'
    answer = await account(tmp_path, conf, f"{user.pw_name.upper()}+Tag")
    assert split(answer) == (user.pw_name, "-", "Tag")
    assert (await account(tmp_path, conf, f"{user.pw_name}-x")).value is None
    higher = f'accounts: {{system: true, floor: {user.pw_uid + 1}, break: "+"}}'
    above = await account(tmp_path, higher, f"{user.pw_name}+tag")
    assert (above.value, above.failed) == (None, False)


def users_cdb(path, *records):
    """Write users/cdb as qmail-newu does: NUL between the strings, its own index under the empty key."""
    made = [(key, b"\0".join(map(str.encode, strings))) for key, *strings in records]
    path.write_bytes(make_cdb([*made, (b"", b"-")]))


async def test_a_compiled_assign_says_the_same(tmp_path):
    users_cdb(
        tmp_path / "cdb",
        (b"!ann\0", "ann", "7", "8", "/srv/ann", "", ""),
        (b"!list-", "sam", "9", "9", "/srv/sam", "-", "lists-"),
    )
    conf = "accounts: {assign: cdb}\n"
    found = (await account(tmp_path, conf, "Ann")).value
    assert (found.user, found.uid, found.gid, found.home, found.dash, found.ext) == (
        "ann",
        7,
        8,
        "/srv/ann",
        "",
        "",
    )
    found = (await account(tmp_path, conf, "list-Dev")).value
    assert (found.user, found.dash, found.ext) == ("sam", "-", "lists-Dev")
    assert found.rule == f"{tmp_path}/cdb: list-"


def test_a_damaged_cdb_refuses_the_start(tmp_path):
    users_cdb(tmp_path / "cdb", (b"!ann\0", "ann", "7"))
    with pytest.raises(ConfigError, match="the record of ann"):
        Bench(tmp_path).build("accounts: {assign: cdb}")


@pytest.mark.parametrize(
    ("local", "dash", "ext"),
    [
        ("alias-corp-Info", "-", "corp-Info"),
        ("Alias-corp", "-", "corp"),
        ("alias", "", ""),
        ("aliases", "-", "aliases"),
        ("joe", "-", "joe"),
    ],
)
async def test_alias_is_found_by_its_name_as_any_user(tmp_path, local, dash, ext):
    (tmp_path / "home").mkdir()
    found = (await account(tmp_path, "accounts: {alias: {home: home}}", local)).value
    assert (found.user, found.dash, found.ext) == ("alias", dash, ext)
