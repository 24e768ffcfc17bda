"""Local delivery through the chain: from a recipient to files in a home."""

import asyncio
import fcntl
import mailbox
import os
import re
import resource
import sys
import threading
import time
from pathlib import Path

import pytest

from gateway import Address, Delivery, Entry, EntryRecipient, Message, Recipient, Stages, new_id, resolve
from gateway.testing import Bench

CONF = """
virtual_domains: {domains: {example.org: abc, example.net: xyz}}
accounts: {virtual: {abc: {home: abc, uid: 1234, gid: 1234}, xyz: {home: xyz, uid: 1235, gid: 1235}}}
"""
MAIL = b"Subject: hi\n\nbody\nFrom here\n"


class Site:
    """A chain with two accounts, and homes to fill."""

    def __init__(self, base, conf=CONF):
        self.base = base
        self.chain = Bench(base).build(conf).chain
        for name in ("abc", "xyz"):
            (base / name).mkdir(mode=0o755)

    def home(self, name="abc", **files):
        home = self.base / name
        for key, text in files.items():
            path = home / f".qmail{key.replace('_', '-')}"
            path.write_text(text)
            path.chmod(0o644)
        return home

    def maildir(self, name="abc", folder="Maildir"):
        for part in ("", "new", "cur", "tmp"):
            (self.base / name / folder / part).mkdir(mode=0o700)
        return self.base / name / folder

    async def delivery(self, address, *, sender="s@example.com", mail=MAIL, entry_id=None, birth=None):
        (routed,) = await resolve(self.chain, Recipient.of(address))
        one = EntryRecipient(1, routed.recipient, route=routed.route)
        message = Message.parse(mail)
        born = time.time() if birth is None else birth
        entry = Entry(entry_id or new_id(), Address(sender), message, [one], born)
        return Delivery(new_id(), entry, routed.route, (one,), Address(sender))

    async def deliver(self, address, **more):
        answer = await self.chain.ask_plugin(
            "dot_qmail", Stages.deliver, await self.delivery(address, **more)
        )
        assert not answer.failed
        (outcome,) = answer.value
        return outcome

    async def exists(self, address):
        (routed,) = await resolve(self.chain, Recipient.of(address))
        return await self.chain.ask_plugin("dot_qmail", Stages.exists, routed.recipient)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def raising(error):
    def call(*_):
        raise error

    return call


async def until(ready):
    """Wait for something that a thread or a program does."""
    while not (found := ready()):  # noqa: ASYNC110 - the world outside sets no event
        await asyncio.sleep(0.02)
    return found


def new(maildir):
    return sorted((maildir / "new").iterdir())


async def test_two_domains_have_name_spaces_of_their_own(site):
    for name in ("abc", "xyz"):
        site.home(name, _info="./Maildir/\n")
        site.maildir(name)
    assert (await site.deliver("info@example.org")).text == "did 1+0+0"
    (file,) = new(site.base / "abc" / "Maildir")
    assert file.read_bytes() == (b"Return-Path: <s@example.com>\nDelivered-To: abc-info@example.org\n" + MAIL)
    assert new(site.base / "xyz" / "Maildir") == []


async def test_python_reads_the_maildir(site):
    site.home(_default="./Maildir/\n")
    site.maildir()
    await site.deliver("any@example.org")
    (message,) = mailbox.Maildir(site.base / "abc" / "Maildir", create=False)
    assert message["Subject"] == "hi"
    assert new(site.base / "abc" / "Maildir")[0].stat().st_mode & 0o777 == 0o600


async def test_the_nearest_file_wins_and_unknown_extensions_fail(site):
    site.home(_joe_default="./Maildir/\n")
    site.maildir()
    assert (await site.deliver("Joe-x.y@example.org")).result == "delivered"
    outcome = await site.deliver("ann@example.org")
    assert (outcome.result, outcome.status) == ("failed", "5.1.1")


async def test_a_repeated_delivery_finds_its_own_file_in_new_and_in_cur(site):
    site.home(_default="./Maildir/\n")
    maildir = site.maildir()
    more = {"entry_id": new_id(), "birth": time.time()}
    await site.deliver("a@example.org", **more)
    assert (await site.deliver("a@example.org", **more)).result == "delivered"
    (file,) = new(maildir)
    file.rename(maildir / "cur" / f"{file.name}:2,FS")
    assert (await site.deliver("a@example.org", **more)).result == "delivered"
    assert new(maildir) == []
    await site.deliver("a@example.org", birth=more["birth"])
    assert len(new(maildir)) == 1


async def test_what_a_dead_attempt_left_in_tmp_is_no_obstacle(site):
    site.home(_default="./Maildir/\n")
    maildir = site.maildir()
    more = {"entry_id": new_id(), "birth": time.time()}
    await site.deliver("a@example.org", **more)
    (file,) = new(maildir)
    whole = file.read_bytes()
    (maildir / "tmp" / file.name).write_bytes(whole[:5])
    file.unlink()
    await site.deliver("a@example.org", **more)
    assert [one.read_bytes() for one in new(maildir)] == [whole]
    assert list((maildir / "tmp").iterdir()) == []


async def test_a_maildir_is_synced_before_success_is_said(site, monkeypatch):
    site.home(_default="./Maildir/\n")
    maildir = site.maildir()
    synced = []
    real = os.fsync

    def fsync(number):
        synced.append(Path(f"/proc/self/fd/{number}").readlink())
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    await site.deliver("a@example.org")
    assert synced == [maildir / "tmp" / new(maildir)[0].name, maildir / "new"]


async def test_a_failing_fsync_defers_and_leaves_nothing(site, monkeypatch):
    site.home(_default="./Maildir/\n")
    maildir = site.maildir()

    def fsync(_number):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    outcome = await site.deliver("a@example.org")
    assert (outcome.result, outcome.status) == ("deferred", "4.3.0")
    assert [*new(maildir), *(maildir / "tmp").iterdir()] == []


async def test_a_missing_maildir_defers(site):
    site.home(_default="./Maildir/\n")
    outcome = await site.deliver("a@example.org")
    assert (outcome.result, outcome.status) == ("deferred", "4.2.1")


async def test_forwards_are_one_birth_with_a_delivered_to_line(site):
    site.home(_list="&one@example.com\ntwo@example.com\n", _list_owner="")
    outcome = await site.deliver("list@example.org")
    (birth,) = outcome.births
    assert outcome.text == "did 0+2+0"
    assert birth.sender == "abc-list-owner@example.org"
    assert birth.recipients == ("one@example.com", "two@example.com")
    assert bytes(birth.message) == b"Delivered-To: abc-list@example.org\n" + MAIL
    assert birth.origin == "forward"


async def test_a_failure_behind_a_forward_forwards_nothing(site):
    site.home(_a="&one@example.com\n|echo 'go away (#5.7.2)'; exit 100\n")
    outcome = await site.deliver("a@example.org")
    assert (outcome.result, outcome.status, outcome.births) == ("failed", "5.7.2", ())
    assert "go away" in outcome.text


async def test_a_loop_is_a_hard_failure(site):
    site.home(_a="&b@example.org\n")
    outcome = await site.deliver("a@example.org", mail=b"Delivered-To: abc-a@example.org\n\n")
    assert (outcome.result, outcome.status) == ("failed", "5.4.6")


async def test_a_program_sees_its_variables_and_nothing_of_ours(site, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    home = site.home(_joe_default="|env >env.out; pwd >pwd.out; cat >cat.out; umask >umask.out\n")
    await site.deliver("joe-Tag@example.org")
    found = dict(line.partition("=")[::2] for line in (home / "env.out").read_text().splitlines() if line)
    assert found["RECIPIENT"] == "abc-joe-Tag@example.org"
    assert (found["EXT"], found["EXT2"], found["DEFAULT"]) == ("joe-Tag", "Tag", "Tag")
    assert found["PATH"] == "/var/qmail/bin:/usr/local/bin:/usr/bin:/bin"
    assert "SECRET" not in found
    assert (home / "cat.out").read_bytes() == MAIL
    assert (home / "umask.out").read_text().strip() == "0077"
    assert (home / "pwd.out").read_text().strip() == str(home)


async def test_each_program_has_the_message_from_its_start_and_cannot_write_it(site):
    home = site.home(_a="|head -c 3 >/dev/null; echo x >&0 || true\n|cat >two\n")
    assert (await site.deliver("a@example.org")).result == "delivered"
    assert (home / "two").read_bytes() == MAIL


async def test_no_room_for_the_copy_of_a_program_defers(site, monkeypatch, tmp_path):
    home = site.home(_a="|touch ran\n")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert (await site.deliver("a@example.org")).result == "deferred"
    assert not (home / "ran").exists()


async def test_a_program_inherits_no_descriptors(site):
    home = site.home(_a="|ls /proc/self/fd >fds\n")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    await site.deliver("a@example.org")
    os.close(reading)
    os.close(writing)
    assert set((home / "fds").read_text().split()) <= {"0", "1", "2", "3"}


async def test_a_flood_of_output_is_cut_and_the_program_still_ends(site):
    site.home(_a="|head -c 5000000 /dev/zero | tr '\\0' x; exit 0\n")
    outcome = await site.deliver("a@example.org")
    assert outcome.result == "delivered"
    assert len(outcome.text) < 3100


async def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    site = Site(tmp_path, CONF + "dot_qmail: {program_time: 0.3s}\n")
    home = site.home(_a="|sleep 600 & echo $! >child; wait\n")
    outcome = await site.deliver("a@example.org")
    assert (outcome.result, outcome.status) == ("deferred", "4.3.0")
    child = int((home / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_a_program_has_no_more_memory_than_it_may_and_cannot_take_more(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_AS)
    site = Site(tmp_path, CONF + "dot_qmail: {program_memory: 256M}\n")
    home = site.home(
        _a=f"|{sys.executable} -c 'bytearray(1 << 30)'\n",
        _b="|cat /proc/self/limits > seen; ulimit -v unlimited\n",
    )
    hungry, greedy = await site.deliver("a@example.org"), await site.deliver("b@example.org")
    assert (hungry.result, "MemoryError" in hungry.text) == ("deferred", True)
    assert (greedy.result, "not permitted" in greedy.text) == ("deferred", True)
    assert re.search(rf"Max address space +{256 << 20} +{256 << 20} ", (home / "seen").read_text())
    # The gateway itself is held to nothing.
    assert resource.getrlimit(resource.RLIMIT_AS) == before


async def test_without_a_thread_mail_is_deferred_and_never_delivered_behind_it(site, monkeypatch):
    home = site.home(_a="|echo ran >> ran\n", _b="|while ! test -e go; do sleep 0.02; done\n")
    slow = asyncio.ensure_future(site.deliver("b@example.org"))
    await until(lambda: any(one.name.startswith("dot_qmail") for one in threading.enumerate()))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        outcome = await site.deliver("a@example.org")
    assert (outcome.result, "no thread" in outcome.text) == ("deferred", True)
    (home / "go").touch()
    assert (await slow).result == "delivered"
    # By now its thread has done what waited for one.
    assert (await site.deliver("b@example.org")).result == "delivered"
    assert not (home / "ran").exists()
    assert (await site.deliver("a@example.org")).result == "delivered"


async def test_a_delivery_that_is_called_off_ends_its_program(site):
    home = site.home(_a="|echo $$ >pid; exec sleep 600\n")
    task = asyncio.ensure_future(site.deliver("a@example.org"))
    pid = await until(lambda: (home / "pid").exists() and (home / "pid").read_text().strip())
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_child_in_the_background_does_not_hold_the_delivery(site):
    site.home(_a="|sleep 5 &\n")
    begin = time.monotonic()
    assert (await site.deliver("a@example.org")).result == "delivered"
    assert time.monotonic() - begin < 4


async def test_mbox_waits_for_the_lock_of_another_program(site):
    home = site.home(_a="./Mailbox\n")
    with (home / "Mailbox").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        timer = threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN))
        timer.start()
        assert (await site.deliver("a@example.org")).result == "delivered"
        timer.join()
    assert b"\n>From here\n\n" in (home / "Mailbox").read_bytes()


async def test_mbox_is_cut_back_when_a_write_fails(site, monkeypatch):
    home = site.home(_a="./Mailbox\n")
    (home / "Mailbox").write_bytes(b"before\n")

    def fsync(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    assert (await site.deliver("a@example.org")).result == "deferred"
    assert (home / "Mailbox").read_bytes() == b"before\n"


@pytest.mark.parametrize(("mode", "status"), [(0o757, "4.7.0"), (0o1755, "4.2.1")])
async def test_an_unsafe_home_defers_and_its_recipients_are_in_doubt(site, mode, status):
    home = site.home(_a="./Maildir/\n")
    home.chmod(mode)
    outcome = await site.deliver("a@example.org")
    assert (outcome.result, outcome.status) == ("deferred", status)
    assert (await site.exists("a@example.org")).failed


async def test_nothing_is_delivered_as_root(tmp_path):
    site = Site(tmp_path, CONF.replace("uid: 1234", "uid: 0"))
    site.home(_a="|touch done\n")
    outcome = await site.deliver("a@example.org")
    assert (outcome.result, outcome.status) == ("deferred", "4.3.0")
    assert not (tmp_path / "abc" / "done").exists()


async def test_exists_says_what_deliver_would(site):
    site.home(_joe_default="./Maildir/\n")
    assert (await site.exists("joe-x@example.org")).value is True
    assert (await site.exists("ann@example.org")).value is False


async def test_postmaster_goes_to_the_gateways_postmaster_unless_a_file_takes_it(site):
    assert (await site.exists("postmaster@example.net")).value is True
    outcome = await site.deliver("Postmaster@example.net")
    assert outcome.births[0].recipients == ("postmaster@mail.example.org",)
    site.home("xyz", _postmaster="./Maildir/\n")
    site.maildir("xyz")
    assert (await site.deliver("postmaster@example.net")).births == ()


@pytest.mark.parametrize(
    "local",
    [
        "../../etc/passwd",
        "$(touch hit)",
        "`touch hit`",
        "a;touch hit",
        "-rf",
        "*",
        "a/../../xyz/.qmail",
        "%s%n",
        "a\\nb",
        "'\"",
        "..",
        "/etc/passwd",
    ],
)
async def test_hostile_local_parts_run_nothing_and_stay_in_the_home(site, local):
    site.home(_default="|cat >got\n./Maildir/\n")
    site.maildir()
    before = {path for path in site.base.rglob("*") if "abc" not in path.parts}
    outcome = await site.deliver(f"{local}@example.org")
    assert outcome.result == "delivered"
    assert not list(site.base.rglob("hit"))
    assert {path for path in site.base.rglob("*") if "abc" not in path.parts} == before
