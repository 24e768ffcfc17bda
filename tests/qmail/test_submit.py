"""qmail-queue, the submit socket and the drop folder: what was accepted is there, once, whoever is down."""

import asyncio
import os
import socket
import stat
import threading
import time

import programs
import pytest

from gateway import drops, submit
from gateway.qmail import envelope, handover

MESSAGE = b"Subject: hello\n\nb\n"
ADDRESSES = envelope.build(b"ann@example.org", [b"joe@remote.example"])
REFUSING = """
from gateway import Plugin, Reject, hookimpl

class Refuse(Plugin):
    @hookimpl
    def message(self, transaction, message):
        return Reject("5.7.1", "not this one") if b"refuse me" in message.header else None
"""


def queue(state, tmp_path, message=MESSAGE, addresses=ADDRESSES, **more):
    """Run qmail-queue; gives its exit code."""
    (tmp_path / "m").write_bytes(message)
    (tmp_path / "e").write_bytes(addresses)
    env = {"MAILWARD_STATE": str(state)}
    with (tmp_path / "m").open("rb") as one, (tmp_path / "e").open("rb") as two:
        return programs.run("qmail-queue", env=env, stdin=one, stdout=two, **more).returncode


def until(look, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def state_of(base):
    """Make a state folder as a gateway that was stopped leaves it."""
    with programs.Running(base) as gateway:
        return gateway.state


def whole(entry):
    return bytes(entry.message).partition(b"\n")[2]


def names(state):
    return sorted(path.name for path in (state / "drop").iterdir())


def test_mail_goes_to_the_running_gateway(gateway, tmp_path):
    assert queue(gateway.state, tmp_path) == 0
    (entry,) = gateway.entries()
    assert (entry.sender, entry.origin, whole(entry)) == ("ann@example.org", "submit", MESSAGE)
    assert [one.recipient.original for one in entry.recipients] == ["joe@remote.example"]
    (accepted,) = gateway.told("message.accepted")
    assert (accepted["origin"], accepted["listener"], accepted["client.ip"]) == (
        "submit",
        "submit",
        "127.0.0.1",
    )
    assert names(gateway.state) == []


def test_everybody_may_submit_but_see_nothing(gateway):
    modes = {name: stat.S_IMODE((gateway.state / name).lstat().st_mode) for name in ("", "submit", "drop")}
    assert modes["submit"] == 0o666
    assert modes["drop"] == 0o3733
    assert modes[""] & 0o007 == 0o001
    for one in ("queue", "journal"):
        assert stat.S_IMODE((gateway.state / one).stat().st_mode) & 0o007 == 0


def test_a_hundred_thousand_recipients_in_one_submission(gateway, tmp_path):
    recipients = [b"r%d@h%d.example" % (i, i % 97) for i in range(100_000)]
    assert queue(gateway.state, tmp_path, addresses=envelope.build(b"list-@l.example-@[]", recipients)) == 0
    (accepted,) = gateway.told("message.accepted")
    assert accepted["recipients"] == 100_000


def test_a_large_message_comes_whole(gateway, tmp_path):
    message = MESSAGE + os.urandom(3_000_000)
    assert queue(gateway.state, tmp_path, message) == 0
    assert whole(gateway.entries()[0]) == message


def test_a_message_over_the_limit_is_refused_for_good(base, tmp_path):
    with programs.Running(base, {"limits": {"message_size": "1M"}}) as gateway:
        assert queue(gateway.state, tmp_path, MESSAGE + b"x" * 2_000_000) == handover.REFUSED
        assert gateway.entries() == []
        assert gateway.told("message.refused")[0]["reply"].startswith("5.3.4")


def test_a_refusal_is_told_on_descriptor_6(base, tmp_path):
    with refusing(base) as gateway:
        (tmp_path / "m").write_bytes(b"X: refuse me\n\nb\n")
        (tmp_path / "e").write_bytes(ADDRESSES)
        program = f"{programs.sys.executable} -IS {programs.PROGRAMS}/qmail-queue"
        line = f"({program} <{tmp_path}/m >&- 1<{tmp_path}/e 6>&9; echo $? >{tmp_path}/code) 9>&1 | cat"
        env = {"MAILWARD_STATE": str(gateway.state), "PATH": "/usr/bin:/bin"}
        done = programs.subprocess.run(["sh", "-c", line], env=env, capture_output=True, check=True)
        assert done.stdout == b"D5.7.1 not this one"
        assert (tmp_path / "code").read_text() == "82\n"
        assert queue(gateway.state, tmp_path, b"X: refuse me\n\nb\n") == handover.REFUSED


def refusing(base):
    folder = base / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / "refuse.py").write_text(REFUSING)
    return programs.Running(base, {"plugins": {"folders": [str(folder)]}})


def test_a_caller_that_gives_up_leaves_nothing(gateway):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(gateway.state / "submit"))
        link.sendall(handover.LENGTH.pack(len(MESSAGE)) + MESSAGE + handover.LENGTH.pack(0))
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(gateway.state / "submit"))
        link.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert link.recv(100) == b""
    assert gateway.entries() == []


def test_a_client_that_drips_or_is_silent_gives_its_place_to_others(base, monkeypatch, tmp_path):
    monkeypatch.setattr(submit, "_LONGEST", 0.3)
    monkeypatch.setattr(submit, "_OF_ONE_USER", 1)
    with programs.Running(base) as gateway, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(gateway.state / "submit"))
        link.sendall(b"\0")
        assert queue(gateway.state, tmp_path) == 0
        assert link.recv(10) == b""


def test_too_many_recipients_are_refused(gateway, tmp_path):
    addresses = envelope.build(b"", [b"a"] * (envelope.MAX_RECIPIENTS + 1))
    assert queue(gateway.state, tmp_path, addresses=addresses) == envelope.NO_MEMORY
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(gateway.state / "submit"))
        link.sendall(handover.LENGTH.pack(0))
        for at in range(0, len(addresses), handover.BLOCK):
            block = addresses[at : at + handover.BLOCK]
            link.sendall(handover.LENGTH.pack(len(block)) + block)
        link.sendall(handover.LENGTH.pack(0))
        assert link.recv(100).startswith(b"D5.5.2")
    assert gateway.entries() == []


def test_while_the_gateway_is_down_mail_is_dropped_and_taken_in_at_its_start(base, tmp_path):
    state = state_of(base)
    assert queue(state, tmp_path) == 0
    (name,) = names(state)
    status = (state / "drop" / name).stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    with programs.Running(base) as gateway:
        (entry,) = until(gateway.entries)
        assert (entry.sender, whole(entry)) == ("ann@example.org", MESSAGE)
        until(lambda: names(state) == [])


def test_a_gateway_that_ends_before_it_has_all_has_taken_nothing_and_mail_is_dropped(base, tmp_path):
    state = state_of(base)
    (state / "submit").unlink()

    def hang_up():
        link, _ = listening.accept()
        link.close()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / "submit"))
        (state / "submit").chmod(0o666)
        listening.listen()
        ended = threading.Thread(target=hang_up)
        ended.start()
        assert queue(state, tmp_path, MESSAGE + b"x" * 3_000_000) == 0
        ended.join()
    assert len(names(state)) == 1


def test_a_gateway_that_ends_before_its_answer_may_have_taken_it(base, tmp_path):
    state = state_of(base)
    (state / "submit").unlink()

    def serve():
        link, _ = listening.accept()
        with link:
            had = b""
            while not had.endswith(b"\0\0" + handover.LENGTH.pack(0)):
                had += link.recv(65536)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / "submit"))
        (state / "submit").chmod(0o666)
        listening.listen()
        ended = threading.Thread(target=serve)
        ended.start()
        assert queue(state, tmp_path) == handover.CONNECTION_LOST
        ended.join()
    assert names(state) == []


def test_a_stop_waits_for_who_is_being_served(base):
    message, end = MESSAGE, handover.LENGTH.pack(0)
    with programs.Running(base) as gateway, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(gateway.state / "submit"))
        link.sendall(handover.LENGTH.pack(len(message)) + message + end)
        until(lambda: gateway.submit._serving)
        stopping = asyncio.run_coroutine_threadsafe(gateway.submit.stop(), gateway.loop)
        link.sendall(handover.LENGTH.pack(len(ADDRESSES)) + ADDRESSES + end)
        assert link.recv(100).startswith(b"K")
        stopping.result(10)
        assert len(gateway.entries()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_drop_belongs_to_who_wrote_it(base, tmp_path):
    tmp_path.chmod(0o755)
    state = state_of(base)
    assert queue(state, tmp_path, user=3001, group=3001, extra_groups=[]) == 0
    with programs.Running(base) as gateway:
        (entry,) = until(gateway.entries)
        assert entry.facts["user"] == "uid 3001"
        assert b"invoked by uid 3001)" in entry.message.header


def test_a_drop_is_taken_in_once_though_its_file_would_not_go(base, tmp_path, monkeypatch):
    state = state_of(base)
    assert queue(state, tmp_path) == 0
    (drop,) = drops.waiting(os.fsencode(state / "drop"))
    unlink, failed = os.unlink, []

    def reluctant(path, **more):
        if not failed and b"/drop/" in os.fsencode(path):
            failed.append(path)
            raise OSError(5, "Input/output error")
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", reluctant)
    monkeypatch.setattr(submit, "EVERY", 0.05)
    with programs.Running(base) as gateway:
        until(lambda: names(state) == [])
        assert failed
        assert [one["message"] for one in gateway.told("message.accepted")] == [drop.id]
        assert "Input/output error" in gateway.told("queue.failed")[0]["error"]


def test_a_file_with_two_names_is_not_taken(base, tmp_path):
    state = state_of(base)
    assert queue(state, tmp_path) == 0
    (name,) = names(state)
    (base / "kept").hardlink_to(state / "drop" / name)
    with programs.Running(base) as gateway:
        until(lambda: names(state) == [f"bad.{name}"])
        assert gateway.entries() == []


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "cut", "empty", "liar"])
def test_what_is_no_drop_is_set_aside(base, tmp_path, kind):
    state = state_of(base)
    path = state / "drop" / "new.x"
    secret = tmp_path / "secret"
    secret.write_bytes(MESSAGE + ADDRESSES + handover.LENGTH.pack(len(ADDRESSES)) + handover.DROP_END)
    make = {
        "symlink": lambda: path.symlink_to(secret),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "cut": lambda: path.write_bytes(MESSAGE + ADDRESSES),
        "empty": path.touch,
        "liar": lambda: path.write_bytes(MESSAGE + handover.LENGTH.pack(0xFFFFFFFF) + handover.DROP_END),
    }
    make[kind]()
    assert queue(state, tmp_path) == 0
    with programs.Running(base) as gateway:
        until(lambda: names(state) == ["bad.new.x"])
        until(gateway.entries)
        assert len(gateway.told("message.accepted")) == 1
        assert gateway.told("message.refused")[0]["reason"] == "drop"


def test_a_drop_that_is_refused_is_bounced_to_its_sender(base, tmp_path):
    state = state_of(base)
    assert queue(state, tmp_path, b"X: refuse me\n\nb\n") == 0
    with refusing(base) as gateway:
        (bounce,) = until(gateway.entries)
        assert (bounce.sender, bounce.origin) == ("", "bounce")
        assert [one.recipient.original for one in bounce.recipients] == ["ann@example.org"]
        assert b"not this one" in bytes(bounce.message)
        until(lambda: names(state) == [])


def test_without_a_state_folder_the_exit_code_says_try_again(tmp_path):
    assert queue(tmp_path / "nowhere", tmp_path) == handover.FOLDER_ERROR


def test_what_a_killed_program_left_unfinished_goes_after_a_day_and_a_half(tmp_path):
    for name, hours in (("tmp.old", 37), ("tmp.young", 1), ("bad.old", 37)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, time.time() - hours * 3600))
    assert drops.waiting(os.fsencode(tmp_path)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"tmp.young", "bad.old"}


def test_a_user_with_many_drops_leaves_room_for_others(tmp_path):
    for n in range(drops.PER_USER * 2):
        (tmp_path / f"new.{n}").touch()
    (tmp_path / "tmp.1").touch()
    if os.geteuid() == 0:
        os.chown(tmp_path / "new.7", 3001, 3001)
    found = drops.waiting(os.fsencode(tmp_path))
    mine = [one for one in found if one.owner == os.geteuid()]
    assert len(mine) == drops.PER_USER
    if os.geteuid() == 0:
        assert found[:2].count(next(one for one in found if one.owner == 3001)) == 1
