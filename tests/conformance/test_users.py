"""The group `users` of the vectors: who controls a local part, and how qmail-lspawn reads it."""

import errno
import os
import pwd

import pytest
import vectors

from gateway.accounts import assign, passwd
from gateway.qmail.options import OptionError, options
from gateway.qmail.pw2u import Users, assigned

ALIAS = "alias"


def table():
    return {row["name"]: row for row in vectors.load("users-passwd")["passwd"]}


def look_up(rows):
    def found(name):
        row = rows[name]
        return pwd.struct_passwd((name, "x", row["uid"], row["gid"], "", row["home"], "/bin/sh"))

    return found


def owner_of(rows):
    homes = {row["home"]: row for row in rows.values()}

    def owner(home):
        if not homes[home]["home_reachable"]:
            raise OSError(errno.ENOENT if homes[home]["home_owner"] is None else errno.EACCES, "no")
        return homes[home]["home_owner"]

    return owner


def system_account(local):
    """Give (user, uid, gid, home, dash, ext) by the rules for system users, alias last."""
    rows = table()
    found = passwd.find_user(local, "-", look_up=look_up(rows), owner_of=owner_of(rows))
    if found is None:
        alias = rows[ALIAS]
        return ALIAS, alias["uid"], alias["gid"], alias["home"], "-", local
    return found.user, found.uid, found.gid, found.home, found.dash, found.ext


def getpw(case):
    names = ("user", "uid", "gid", "home", "dash", "ext")
    return {"exit": 0, **dict(zip(names, system_account(vectors.text(case["input"]["local"])), strict=True))}


def lspawn(case):
    """Say whom qmail-lspawn would have started qmail-local for; its exit codes are not ours."""
    found = {"newu_exit": 0} if case["input"]["assign"] is not None else {}
    local, at, host = vectors.text(case["input"]["recipient"]).rpartition("@")
    account = None
    if case["input"]["assign"] is not None:
        try:
            one = assign.parse_assign(vectors.text(case["input"]["assign"])).find(local)
            account = one and (one.user, one.uid, one.gid, one.home, one.dash, one.ext)
        except assign.AssignError:
            found["newu_exit"] = 111
    if not at or not local:
        return found | {"result": "K" if at else "D", "call": None}
    user, uid, gid, home, dash, ext = account or system_account(local)
    if uid == 0:
        return found | {"result": "Z", "call": None}
    call = {"user": user, "uid": uid, "gid": gid, "home": home, "dash": dash, "ext": ext, "local": local}
    return found | {"result": "K", "call": call | {"domain": host}}


def expected(case):
    wanted = {key: case["expect"][key] for key in ("newu_exit", "result") if key in case["expect"]}
    call = case["expect"]["call"]
    if call is not None:
        kept = ("user", "uid", "gid", "home", "dash", "ext", "local", "domain")
        call = {key: vectors.text(call[key]) if isinstance(call[key], dict) else call[key] for key in kept}
    return wanted | {"call": call}


def pw2u(case, folder):
    """Run the function that qmail-pw2u calls, with the homes of the table."""
    rows = {row["home"].encode(): row for row in table().values()}
    for name, text in case["input"].get("users_files", {}).items():
        (folder / name).write_bytes(vectors.raw(text))
    chosen, _ = options([one.encode() for one in case["input"]["args"]], "/ohHuUCc:")
    users = Users(
        chosen, os.fsencode(folder), lambda home: rows[home]["home_owner"] if home in rows else None
    )
    code, text = assigned(users, vectors.raw(case["input"]["passwd_text"]))
    return {"exit": code, "assign": vectors.as_text(text)}


def is_lookup(case):
    return case["input"]["kind"] == "lspawn" and "local_exit" not in case["input"]


@pytest.mark.parametrize("case", vectors.cases("users", lambda case: case["input"]["kind"] == "getpw"))
def test_getpw(case, request):
    vectors.compare(request, "users", case, getpw(case), case["expect"])


@pytest.mark.parametrize("case", vectors.cases("users", is_lookup))
def test_lspawn(case, request):
    vectors.compare(request, "users", case, lspawn(case), expected(case))


@pytest.mark.parametrize("case", vectors.cases("users", lambda case: case["input"]["kind"] == "pw2u"))
def test_pw2u(case, tmp_path, request):
    try:
        found = pw2u(case, tmp_path)
    except OptionError:
        found = {"exit": 100, "assign": ""}
    vectors.compare(request, "users", case, found, case["expect"])
