"""An installation of qmail and its queue, taken over: what it said, in our settings; what it held, queued."""

import asyncio
import os
import time
from itertools import pairwise

import pytest
from click.testing import CliRunner

from gateway.commands.assembly import Assembly
from gateway.commands.group import mailward
from gateway.hookspecs import Stages
from gateway.queue import Filter
from gateway.worker import Configuration, Worker

CONTROL = {
    "me": "mx.example.org\n",
    "rcpthosts": "# ours\nexample.org\n.example.net\n",
    "locals": "mx.example.org\n",
    "virtualdomains": "example.org:abc\njoe@example.net:joe\n",
    "badmailfrom": "@spam.example\n",
    "smtproutes": ":hub.example:26\n",
    "databytes": "1000000\n",
    "timeoutremote": "60\n",
    "concurrencylocal": "7\n",
    "concurrencyincoming": "33\n",
    "doublebounceto": "dbl\n",
    "defaultdomain": "example.org\n",
    "taps": "x:y\n",
    "defaultdelivery": "|dot-forward .forward\n./Maildir/\n",
}
ASSIGN = "+corp-:corp:{uid}:{gid}:{home}:-::\n.\n"


@pytest.fixture
def old(tmp_path):
    """An installation of qmail."""
    home = tmp_path / "qmail"
    for folder in ("control", "users", "alias", "etc", "domains/corp"):
        (home / folder).mkdir(parents=True)
    for name, text in CONTROL.items():
        (home / "control" / name).write_text(text)
    domain = home / "domains" / "corp"
    (domain / ".qmail-default").write_text("| /home/vpopmail/bin/vdelivermail '' bounce-no-mailbox\n")
    owner = domain.stat()
    (home / "users" / "assign").write_text(ASSIGN.format(uid=owner.st_uid, gid=owner.st_gid, home=domain))
    (home / "etc" / "tcp.smtp").write_text('127.:allow,RELAYCLIENT="",RBLSMTPD=""\n:allow\n')
    return home


def imported(old, new, *more):
    result = CliRunner().invoke(mailward, ["import-qmail", str(old), str(new), *more])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output, Configuration.load(new / "conf.d")


def test_what_control_files_said_is_in_the_settings(old, tmp_path):
    _, found = imported(old, tmp_path / "new")
    settings, text = found.settings, found.tree.text
    assert settings.gateway.hostname == "mx.example.org"
    assert settings.limits.message_size == 1_000_000
    assert settings.limits.sessions == 33
    assert settings.queue.concurrency.local == 7
    assert (text("remote", "timeout"), text("remote", "timeout_final")) == ("60s", "60s")
    assert text("bounces", "double_bounce_to") == "dbl@mx.example.org"
    assert text("dot_qmail", "default_delivery") == "|dot-forward .forward\n./Maildir/"
    for section, name in (("rcpthosts", "rcpthosts"), ("virtual_domains", "virtualdomains")):
        assert text(section, "file") == f"control/{name}"
        assert (tmp_path / "new" / "control" / name).read_text() == CONTROL[name]


def test_each_decision_has_a_comment_and_what_has_no_counterpart_is_told(old, tmp_path):
    output, _ = imported(old, tmp_path / "new")
    lines = "".join(path.read_text() for path in (tmp_path / "new" / "conf.d").iterdir()).splitlines()
    for before, line in pairwise(lines):
        if line.startswith("  ") and "#" not in line and not line.endswith(":"):
            assert before.strip().startswith("# "), line
    assert "  # control/databytes" in lines
    assert "note: control/taps: has no counterpart\n" in output
    assert "note: tcp.smtp: the variable RBLSMTPD has no effect\n" in output
    assert "note: users/assign: was never compiled by qmail-newu" in output
    assert "corp/.qmail-default: runs vdelivermail of vpopmail" in output


def test_without_databytes_there_is_no_limit(old, tmp_path):
    (old / "control" / "databytes").unlink()
    _, found = imported(old, tmp_path / "new")
    assert found.settings.limits.message_size == 0


def test_without_rcpthosts_it_is_no_open_relay(old, tmp_path):
    (old / "control" / "rcpthosts").unlink()
    output, found = imported(old, tmp_path / "new")
    assert "rcpthosts" not in found.tree.sections() or not found.tree.text("rcpthosts", "file")
    assert "now none is taken" in output


def test_a_start_script_says_the_default_delivery(old, tmp_path):
    (old / "control" / "defaultdelivery").unlink()
    (old / "rc").write_text('exec env - PATH="$PATH" \\\nqmail-start ./Mail/ splogger qmail\n')
    _, found = imported(old, tmp_path / "new")
    assert found.tree.text("dot_qmail", "default_delivery") == "./Mail/"


def test_nothing_is_written_over(old, tmp_path):
    imported(old, tmp_path / "new")
    result = CliRunner().invoke(mailward, ["import-qmail", str(old), str(tmp_path / "new")])
    assert (result.exit_code, "nothing was written" in result.output) == (1, True)


def test_a_folder_that_is_no_qmail_is_told(tmp_path):
    result = CliRunner().invoke(mailward, ["import-qmail", str(tmp_path), str(tmp_path / "new")])
    assert (result.exit_code, "no folder `control`" in result.output) == (1, True)


def walk(new, address):
    arguments = ["address", address, "--client", "192.0.2.7", "--conf", str(new / "conf.d")]
    return CliRunner().invoke(mailward, arguments).output


def test_the_new_site_sends_mail_where_the_old_one_did(old, tmp_path):
    new = tmp_path / "new"
    imported(old, new)
    assert f"{new}/control/virtualdomains:1" in walk(new, "info@example.org")
    assert "refused 553 5.7.1" in walk(new, "u@elsewhere.example")


# The queue


def old_message(queue, number, envelope, text, *, birth, channels=(), bounce=""):
    """Write a message as qmail-queue (`envelope` in todo) or qmail-send (in info and `channels`) left it."""
    split = str(number % 23)
    files = {f"mess/{split}/{number}": text.encode()}
    if channels:
        files[f"info/{split}/{number}"] = f"F{envelope}\0".encode()
        for channel, recipients in channels:
            files[f"{channel}/{split}/{number}"] = b"".join(f"{one}\0".encode() for one in recipients)
        if bounce:
            files[f"bounce/{number}"] = bounce.encode()
    else:
        files[f"todo/{number}"] = envelope.encode()
    for name, content in files.items():
        path = queue / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (birth, birth))


BORN = 1_790_000_000.0


@pytest.fixture
def old_queue(tmp_path):
    queue = tmp_path / "old" / "queue"
    (tmp_path / "old" / "control").mkdir(parents=True)
    (tmp_path / "old" / "control" / "virtualdomains").write_text("example.org:abc\n")
    text = "Received: (qmail 1 invoked by uid 0); 3 Feb 2026 09:05:07 -0000\nSubject: t\n\nbody\n"
    channels = [("local", ["Tabc-info@example.org", "Dabc-done@example.org"]), ("remote", ["Tu@far.example"])]
    bounce = "<gone@far.example>:\nno such user\n\n"
    old_message(queue, 41, "s@r.example", text, birth=BORN, channels=channels, bounce=bounce)
    todo = "u3001\0p77\0F\0Tu@todo.example\0Tv@todo.example\0\0"
    old_message(queue, 42, todo, text * 9000, birth=BORN + 60)
    old_message(queue, 43, "done@r.example", text, birth=BORN, channels=[("remote", ["Du@far.example"])])
    (queue / "mess" / "1" / "93").parent.mkdir(exist_ok=True)
    (queue / "mess" / "1" / "93").write_text("never committed\n")
    return queue


def held(site):
    """Give what is in the site's queue, while no gateway runs."""

    async def look():
        chain = Assembly.of(Configuration.load(site.conf)).generation.chain
        queue = (await chain.ask(Stages.open_queue)).value
        await queue.open()
        entries = [await queue.get(one.id) for one in await queue.list(Filter())]
        await queue.close()
        return entries

    return asyncio.run(look())


def test_what_waits_in_the_old_queue_is_taken_over_once(site, old_queue):
    (site.base / "var").mkdir(exist_ok=True)
    assert site.mailward("import-qmail", "--queue", str(old_queue)).startswith("2 of 2 messages were added")
    assert site.mailward("import-qmail", "--queue", str(old_queue)).startswith("0 of 2 messages were added")
    first, second = sorted(held(site), key=lambda entry: entry.birth)
    assert (first.sender, first.birth, second.sender) == ("s@r.example", BORN, "")
    assert [one.recipient.address for one in second.recipients] == ["u@todo.example", "v@todo.example"]
    assert bytes(second.message).count(b"Subject: t") == 9000
    assert [(one.recipient.address, one.recipient.original) for one in first.recipients] == [
        ("u@far.example", "u@far.example"),
        ("gone@far.example", "gone@far.example"),
        ("abc-info@example.org", "info@example.org"),
    ]
    assert [one.route and one.route.plugin for one in first.recipients] == [None, None, "dot_qmail"]
    assert (old_queue / "todo" / "42").exists()
    assert not list((site.base / "var").glob("import-*"))


async def test_mail_of_the_old_queue_reaches_its_mailbox(site, old_queue):
    home = site.home("abc", info="./Maildir/\n")
    (site.base / "var").mkdir(exist_ok=True)
    recent = time.time() - 60
    for path in old_queue.rglob("*"):
        os.utime(path, (recent, recent))
    await asyncio.to_thread(site.mailward, "import-qmail", "--queue", str(old_queue))
    worker = Worker(Configuration.load(site.conf))
    await worker.start()
    try:
        async with asyncio.timeout(20):
            while not (arrived := list((home / "Maildir" / "new").iterdir())):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.05)
    finally:
        await worker.stop()
    assert b"Delivered-To: abc-info@example.org\n" in arrived[0].read_bytes()


def test_a_running_gateway_must_be_stopped_first(site, old_queue, monkeypatch):
    monkeypatch.setattr("gateway.console.running", lambda _state: True)
    assert "stop it" in site.mailward("import-qmail", "--queue", str(old_queue), code=1)


def test_a_folder_that_is_no_queue_is_told(site, tmp_path):
    assert "is no queue of qmail" in site.mailward("import-qmail", "--queue", str(tmp_path), code=1)
