"""A worker that was taken over speaks to the agent: it gains nothing, and the agent lives."""

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
from errands import deliver, exists


def lives(door):
    """Whether the agent still does what it is for."""
    return door.account(door.ann, request=exists(door.ann)) == {"value": True}


JUNK = [
    b"x",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 4000,
    b'{"do": ' * 600,
    b'{"do": null}',
    b'{"do": ["read"]}',
    b'{"do": "run"}',
    b'{"do": "read"}',
    b'{"do": "read", "path": {}}',
    b'{"do": "read", "path": "\\u0000"}',
    b'{"do": "read", "path": "/etc/shadow"}',
    b'{"do": "read", "path": "/proc/self/mem"}',
    b'{"do": "account", "account": 7, "home": 7}',
    b'{"do": "account", "account": "\\ud800", "home": "/"}',
    b'{"do": "account", "account": "a\\u0000b", "home": "/"}',
    b'{"do": "account", "account": "nobody-of-that-name", "home": "/"}',
    b'{"do": "account", "account": "root", "home": "/root"}',
    b'{"do": "account", "account": "daemon", "home": "/usr/sbin"}',
    b'{"do": "login", "plugin": "auth_pam"}',
    b'{"do": "login", "plugin": []}',
    b'{"do": "reload", "bind": 7}',
    b'{"do": "notify", "word": "STATUS=x"}',
    b'{"do": "account"' + b" " * 5000,
]


def test_junk_is_refused_and_hands_nothing_out(door):
    door.start()
    for data in JUNK:
        said, files = door.say(data)
        assert set(said) == {"error"}, data
        assert files == []
    assert lives(door)


def test_thousands_of_requests_end_nothing(door):
    door.start()
    door.way.setblocking(True)
    for number in range(3000):
        door.way.send(JUNK[number % len(JUNK)] or b"x")
    door.way.send(b"")
    assert lives(door)
    # Neither the requests nor what came with them stay open.
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
    for _ in range(50):
        socket.send_fds(door.way, [b"{}"], many)
    for one in many:
        os.close(one)
    assert lives(door)
    assert len(list(Path(f"/proc/{door.process.pid}/fd").iterdir())) < 30


def test_only_listed_accounts_and_their_own_homes(door, users):
    (door.base / "assign").write_text(
        f"=zero:zero:0:61002:{door.base}:::\n=group:group:61002:0:{door.base}:::\n"
        f"=ours:ours:{users[door.gateway].pw_uid}:61002:{door.base}:::\n"
        f"=queue:queue:61002:{users[door.gateway].pw_gid}:{door.base}:::\n"
        f"=minus:minus:{2**32 - 1}:61002:{door.base}:::\n"
        f"=minusgroup:minusgroup:61002:{2**32 - 1}:{door.base}:::\n"
        f"=around:around:{2**32}:61002:{door.base}:::\n.\n"
    )
    door.plan["accounts"]["assign"] = str(door.base / "assign")
    door.start()
    for name, home, said in [
        ("root", "/root", "below accounts.floor"),
        ("zero", door.base, "nothing is delivered as uid 0"),
        ("group", door.base, "nothing is delivered with the group 0"),
        ("ours", door.base, "nothing is delivered as uid"),
        ("queue", door.base, "nothing is delivered with the group"),
        ("minus", door.base, "nothing is delivered as uid 4294967295"),
        ("minusgroup", door.base, "nothing is delivered with the group 4294967295"),
        ("around", door.base, "nothing is delivered as uid 4294967296"),
        (door.gateway, users[door.gateway].pw_dir, "No such file"),
        (door.ann, users[door.joe].pw_dir, "no account of that name has the home"),
        (door.ann, f"{users[door.ann].pw_dir}/../{door.joe}", "no account of that name has the home"),
        (door.ann, f"{users[door.ann].pw_dir}/sub", "no account of that name has the home"),
        (door.ann, "/root", "no account of that name has the home"),
        ("stranger", "/home/stranger", "no account of that name has the home"),
    ]:
        assert said in door.account(name, home, exists(name))["error"], name
    assert lives(door)


def test_system_users_below_the_floor_have_no_mail(door, users):
    door.plan["accounts"]["floor"] = users[door.joe].pw_uid + 1
    door.start()
    assert "below accounts.floor" in door.account(door.joe, request=exists(door.joe))["error"]


def test_a_home_that_is_not_the_users_own_is_none(door, users):
    door.start()
    home = users[door.joe].pw_dir
    os.chown(home, users[door.ann].pw_uid, -1)
    try:
        assert "no account of that name" in door.account(door.joe, request=exists(door.joe))["error"]
    finally:
        os.chown(home, users[door.joe].pw_uid, -1)


@pytest.mark.parametrize("which", ["file", "mode", "folder", "link"])
def test_assignments_that_others_could_change_count_for_nothing(door, users, which):
    uid = users[door.joe].pw_uid
    folder = door.base / "users"
    folder.mkdir()
    path = folder / "assign"
    path.write_text(f"=one:one:61002:61002:{door.base}:::\n.\n")
    if which == "link":
        path.rename(door.base / "assign")
        path.symlink_to(door.base / "assign")
    if which == "mode":
        path.chmod(0o664)
    else:
        os.chown(path if which == "file" else folder, uid, -1)
    door.plan["accounts"]["assign"] = str(path)
    door.start()
    said = door.account("one", door.base, exists("one"))["error"]
    assert "it must belong to root, and nobody else may write it" in said


def test_keys_are_read_where_only_root_can_say_which(door, users):
    own = door.base / "own"
    own.mkdir()
    for folder in (door.base, own):
        (folder / "key").write_text("the key")
        (folder / "key").chmod(0o600)
    (own / "key").unlink()
    (own / "key").symlink_to("/etc/shadow")
    (door.base / "linked").symlink_to("key")
    os.chown(own, users[door.gateway].pw_uid, -1)
    door.plan["files"] = [str(one) for one in (door.base / "key", own / "key", door.base / "linked", "/dev")]
    door.start()
    for name in ("key", "linked"):
        _, (found,) = door.say({"do": "read", "path": str(door.base / name)})
        with os.fdopen(found) as file:
            assert file.read() == "the key"
    said, files = door.say({"do": "read", "path": str(own / "key")})
    assert (files, "must belong to root" in said["error"]) == ([], True)
    said, files = door.say({"do": "read", "path": "/dev"})
    assert (files, "no regular file" in said["error"]) == ([], True)


BAD = [
    {"id": "../../.qmail"},
    {"id": "a/b"},
    {"id": ""},
    {"number": "0/../x"},
    {"number": -1},
    {"number": True},
    {"birth": "x"},
    {"birth": 1e400},
    {"origin": "root"},
    {"dash": "/../../x"},
    {"dash": "-x.old"},
    {"dash": "~", "ext": "x"},
    {"ext": "x"},
    {"header": "!"},
    {"header": {"$": "Path", "of": "/etc/passwd"}},
    {"body": {"$": "FileBody", "of": {"path": "/etc/passwd", "size": 9}}},
    {"body": None},
    {"address": {"$": "Path", "of": "/"}},
    {"sender": ["x"]},
    {"plugin": "../evil"},
    {"plugin": "remote"},
    {"stage": "startup"},
    {"stage": "__init__"},
]


def test_a_request_to_a_child_says_nothing_but_mail(door, users):
    home = users[door.joe].pw_dir
    door.start()
    before = sorted(Path(home).iterdir())
    for changes in BAD:
        assert set(door.account(door.joe, request=deliver(door.joe, **changes))) == {"error"}, changes
    for data in (b"", b"[" * 100_000, b"null", b"\xff"):
        assert set(door.account(door.joe, request=data)) == {"error"}
    assert sorted(Path(home).iterdir()) == before
    assert door.account(door.joe, request=exists(door.joe)) == {"value": True}


def test_lines_of_assign_lead_to_files_that_have_no_dash_and_to_no_others(door, users):
    uid, gid, home = users[door.joe][2], users[door.joe][3], users[door.joe].pw_dir
    lines = ("+dot.:{}.::", "+pre:{}::", "=just:{}~:one:", "+list-:{}-list-::")
    account = f"joe:{uid}:{gid}:{home}:"
    (door.base / "assign").write_text("".join(f"{one.format(account)}\n" for one in lines) + ".\n")
    door.plan["accounts"]["assign"] = str(door.base / "assign")
    door.plan["accounts"]["virtual"]["joe"] = [home, uid, gid]
    door.start()
    ways = [(".", "x"), ("", "foo"), ("~", "one"), ("-list-", "x"), ("-", "x")]
    for dash, ext in ways:
        said = door.account("joe", home, exists("joe", dash=dash, ext=ext))
        assert said == {"value": not dash}, (dash, ext)
    for dash, ext in [("~", "two"), ("~", ""), ("-x.old", ""), ("/../x", ""), (".x", "")]:
        assert (
            "no file of an account" in door.account("joe", home, exists("joe", dash=dash, ext=ext))["error"]
        )
    assert "no file of" in door.account(door.joe, request=exists(door.joe, dash=".", ext="x"))["error"]


def test_what_has_no_end_is_no_body(door):
    door.start()
    endless = os.open("/dev/zero", os.O_RDONLY)
    reading, _ = pipe = os.pipe()
    for body in (endless, reading):
        said = door.account(door.joe, request=deliver(door.joe, body=None), body=body)
        assert "is no file" in said["error"]
    said, _ = door.say({"do": "account", "account": door.joe, "home": door.users[door.joe].pw_dir}, [endless])
    assert "is no file" in said["error"]
    said, _ = door.say({"do": "account", "account": door.joe, "home": door.users[door.joe].pw_dir})
    assert "no request" in said["error"]
    for one in (endless, *pipe):
        os.close(one)


def test_a_home_in_the_request_itself_counts_for_nothing(door, users):
    evil = door.base / "evil"
    evil.mkdir()
    evil.chmod(0o755)
    (evil / ".qmail").write_text(f"|touch {users[door.joe].pw_dir}/ran\n")
    account = {"$": "Account", "of": {"user": door.joe, "uid": 0, "gid": 0, "home": str(evil)}}
    door.start()
    said = door.account(door.joe, request=deliver(door.joe, account=account, home=str(evil), body=""))
    assert not Path(users[door.joe].pw_dir, "ran").exists()
    assert json.dumps(said).count("evil") == 0


def test_the_way_shut_by_a_worker_ends_the_gateway_in_order(door):
    door.start()
    door.way.shutdown(socket.SHUT_RDWR)
    assert door.process.wait(20) == 256 - 15


def test_a_plugin_that_others_could_change_is_not_run(door, users):
    path = door.base / "dot_qmail.py"
    path.write_text("raise SystemExit('it ran')\n")
    os.chown(path, users[door.ann].pw_uid, -1)
    door.plan["plugins"]["dot_qmail"]["path"] = str(path)
    door.start()
    assert "must belong to root" in door.account(door.joe, request=exists(door.joe))["error"]


def test_an_answer_for_which_there_is_no_room_keeps_nobody_waiting(door):
    door.start()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(b"x", socket.MSG_DONTWAIT)
        socket.send_fds(door.way, [b'{"do": "notify", "word": "x"}'], [theirs.fileno()])
        assert lives(door)


@pytest.mark.parametrize("since", ["the start", "a reload"])
def test_what_another_serves_at_a_path_that_a_reload_has_dropped_is_left_to_it(door, since):
    path = door.base / "socket"
    kept = door.base / "kept"
    both = [["mx", f"unix:{path}"], ["lmtp", f"unix:{kept}"]]
    door.plan["listeners"] = both if since == "the start" else []
    door.start()
    if since == "a reload":
        door.plan["listeners"] = both
        door.write()
        _, files = door.say({"do": "reload", "bind": [address for _, address in both]})
        assert door.say({"do": "adopt"}) == ({}, [])
        for one in files:
            os.close(one)
    door.plan["listeners"] = both[1:]
    door.write()
    door.say({"do": "reload", "bind": []})
    assert door.say({"do": "adopt"}) == ({}, [])
    assert door.say({"do": "unbind"}) == ({}, [])
    # What the start has bound the supervisor of this test still serves.
    assert path.exists() == (since == "the start")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        if since == "the start":
            other.listen()
        door.end()
        assert path.exists()
    assert not kept.exists()


def test_what_another_serves_at_a_path_of_ours_is_left_to_it_at_the_end(door):
    path = door.base / "socket"
    door.plan["listeners"] = [["mx", f"unix:{path}"]]
    door.start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        door.end()
        assert path.exists()


def test_a_reload_lists_what_is_listed_by_then(door):
    home = door.base / "home"
    home.mkdir()
    os.chown(home, 61002, 61002)
    door.start()
    assert "no account" in door.account("new", home, exists("new"))["error"]
    door.plan["accounts"]["virtual"]["new"] = [str(home), None, None]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    door.plan["listeners"] = [["mx", f"127.0.0.1:{port}"]]
    door.write()
    said, (listening,) = door.say({"do": "reload", "bind": [f"127.0.0.1:{port}", "127.0.0.1:22"]})
    assert said == {"bound": [[[f"127.0.0.1:{port}", 1]]]}
    assert "no account" in door.account("new", home, exists("new"))["error"]
    assert door.say({"do": "adopt"}) == ({}, [])
    assert "nothing was read" in door.say({"do": "adopt"})[0]["error"]
    with socket.socket(fileno=listening) as served, socket.create_connection(("127.0.0.1", port)):
        served.setblocking(True)
        served.accept()[0].close()
    assert door.account("new", home, exists("new")) == {"value": True}
