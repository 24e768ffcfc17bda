"""Logins that only root can look at: the agent has a program do it, and no worker says which."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.authentication.checkpassword import pam_program

PASSWORD = "a secret of ann's"


@pytest.fixture
def credentials():
    """Give an open file with login and password."""
    opened = []

    def make(*words):
        read, write = os.pipe()
        opened.append(read)
        os.write(write, b"".join(one.encode() + b"\0" for one in (*words, "")))
        os.close(write)
        return read

    yield make
    for one in opened:
        os.close(one)


def login(door, plugin, given):
    return door.say({"do": "login", "plugin": plugin}, [given])[0]


def test_pam_knows_the_users_of_the_host(door, credentials):
    subprocess.run(["chpasswd"], input=f"{door.ann}:{PASSWORD}\n", text=True, check=True)
    door.plan["logins"]["auth_pam"] = pam_program("login")
    door.start()
    assert login(door, "auth_pam", credentials(door.ann, PASSWORD)) == {"exit": 0}
    assert login(door, "auth_pam", credentials(door.ann, "wrong")) == {"exit": 1}
    # PAM takes its time over each that is wrong.
    assert login(door, "auth_pam", credentials("nobody-of-that-name", PASSWORD)) == {"exit": 1}
    subprocess.run(["usermod", "--expiredate", "1", door.ann], check=True)
    assert login(door, "auth_pam", credentials(door.ann, PASSWORD)) == {"exit": 1}


def program(door, text, name="program"):
    path = door.base / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    door.plan["logins"]["auth_checkpassword"] = [str(path), "/bin/true"]
    return path


def test_a_program_runs_as_root_with_nothing_but_the_login(door, credentials):
    program(door, f"(id -u; ls /proc/self/fd; cat <&3; env; echo $1) > {door.base}/seen; exit 7")
    door.start()
    assert login(door, "auth_checkpassword", credentials("ann", "secret")) == {"exit": 7}
    seen = (door.base / "seen").read_text().split()
    assert seen[:6] == ["0", "0", "1", "2", "3", "4"]
    assert "ann\0secret\0\0" in seen[6]
    assert seen[-1] == "/bin/true"


def test_only_what_the_configuration_names_is_run(door, credentials):
    door.start()
    for plugin in ("auth_checkpassword", "auth_pam", "/bin/sh", "../x"):
        assert set(login(door, plugin, credentials("ann", "x"))) == {"error"}


def test_a_program_that_others_could_change_is_not_run(door, users, credentials):
    path = program(door, f"touch {door.base}/ran")
    os.chown(path, users[door.gateway].pw_uid, -1)
    door.start()
    said = login(door, "auth_checkpassword", credentials("ann", "x"))
    assert "it must belong to root" in said["error"]
    assert not (door.base / "ran").exists()


@pytest.mark.parametrize("relative", [False, True])
def test_nor_what_others_could_change_of_what_it_is_given(door, users, credentials, relative):
    path = door.base / "check.sh"
    path.write_text(f"touch {door.base}/ran; exit 7\n")
    named = str(path).lstrip("/") if relative else str(path)
    door.plan["logins"]["auth_checkpassword"] = [
        "/bin/sh",
        named,
        "/no/such/file",
        "-c",
        "a word",
        "x" * 5000,
    ]
    door.start()
    assert login(door, "auth_checkpassword", credentials("ann", "x")) == {"exit": 7}
    (door.base / "ran").unlink()
    os.chown(path, users[door.gateway].pw_uid, -1)
    said = login(door, "auth_checkpassword", credentials("ann", "x"))
    assert f"{path}: it must belong to root" in said["error"]
    assert not (door.base / "ran").exists()


def test_nor_with_a_name_in_an_option_or_of_a_file_that_others_could_make(door, users, credentials):
    folder = door.base / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    joes = folder / "config"
    joes.touch()
    os.chown(joes, users[door.joe].pw_uid, -1)
    path = str(program(door, f"touch {door.base}/ran; exit 7"))
    for name in (joes, folder / "none"):
        for form in ("{}", "--config={}", "file={}", "-c{}", "--set=config={}"):
            word = form.format(name)
            door.plan["logins"][word] = [path, word, "/bin/true"]
    door.start()
    for word in door.plan["logins"]:
        taken = word == "auth_checkpassword"
        said = login(door, word, credentials("ann", "x"))
        assert said == {"exit": 7} if taken else "it must belong to root" in said["error"], word
        assert (door.base / "ran").exists() == taken, word
        (door.base / "ran").unlink(missing_ok=True)


def test_what_is_usual_in_arguments_is_taken(door, credentials):
    program(door, "exit 7")
    (door.base / "config").touch()
    usual = [
        *("-s", "smtp", "--", "--debug", "word=x", "--x=", "=", "-", ""),
        *("/dev/null", "--log=/dev/null", f"--config={door.base}/config", f"-c{door.base}/not/there"),
        *("--url=ldap://mail.example.org/dc=org", "mail.example.org", "/bin/true"),
    ]
    door.plan["logins"]["auth_checkpassword"][1:] = usual
    door.start()
    assert login(door, "auth_checkpassword", credentials("ann", "x")) == {"exit": 7}


def test_no_more_than_a_few_at_a_time(door, credentials):
    program(door, "exec sleep 100")
    door.start()
    ours, theirs = socket.socketpair()
    given = credentials("ann", "x")
    for _ in range(20):
        asked = json.dumps({"do": "login", "plugin": "auth_checkpassword"}).encode()
        socket.send_fds(door.way, [asked], [given, theirs.fileno()])
    theirs.close()
    ours.settimeout(20)
    assert b"too many logins" in ours.recv(4096)
    ours.close()
    children = Path(f"/proc/{door.process.pid}/task/{door.process.pid}/children").read_text().split()
    # The test's own supervisor is one of them.
    assert len(children) <= 17
    for pid in children[1:]:
        os.kill(int(pid), 9)
