"""The programs as a site has them: laid out by `install`, quick to start, beside a gateway or without one."""

import os
import stat
import subprocess
import sys
import time

import programs
import pytest

from gateway import qmail
from gateway.console import Console
from gateway.workers.calls import Calls

INSTALL = programs.PROGRAMS / "install"
MESSAGE = b"Subject: hello\nTo: joe@remote.example\n\nb\n"


@pytest.fixture
def bin_(base):
    """The programs under a prefix, for a state folder beside it."""
    command = [sys.executable, INSTALL, base / "qmail" / "bin", "--state", base / "state"]
    subprocess.run(command, check=True)
    return base / "qmail" / "bin"


def run(program, *arguments, message=b"", **env):
    given = {"PATH": "/usr/bin:/bin", "USER": "ann", **env}
    return subprocess.run(
        [program, *arguments], input=message, env=given, capture_output=True, check=False, timeout=30
    )


def test_install_lays_out_every_program_and_the_contrib_folder_has_them_too(bin_):
    assert {path.name for path in bin_.iterdir()} == {*qmail.PROGRAMS, "mailward-state"}
    assert {path.name for path in programs.PROGRAMS.iterdir()} == {*qmail.PROGRAMS, "install", "launcher"}
    assert all(stat.S_IMODE((bin_ / name).stat().st_mode) == 0o755 for name in qmail.PROGRAMS)


def test_installed_sendmail_reaches_the_gateway(bin_, gateway):
    done = run(bin_ / "sendmail", "-t", "-f", "ann@example.org", message=MESSAGE)
    assert (done.returncode, done.stderr) == (0, b"")
    (entry,) = gateway.entries()
    assert entry.sender == "ann@example.org"
    assert b"From: ann@example.org\n" in entry.message.header
    assert b".qmail@me.example>\n" in entry.message.header


@pytest.mark.parametrize("given", [["-f", ""], ["-f", "<>"], ["-f<>"]])
def test_the_null_sender_in_every_spelling(bin_, gateway, given):
    assert run(bin_ / "sendmail", *given, "joe@remote.example", message=MESSAGE).returncode == 0
    assert [entry.sender for entry in gateway.entries()] == [""]


def test_a_link_to_an_installed_program_finds_the_gateway(bin_, base, gateway):
    (base / "sendmail").symlink_to(bin_ / "sendmail")
    assert run(base / "sendmail", "joe@remote.example", message=MESSAGE).returncode == 0
    assert len(gateway.entries()) == 1


def test_installed_sendmail_keeps_mail_while_the_gateway_is_down(bin_, base):
    with programs.Running(base) as gateway:
        drop = gateway.state / "drop"
    assert run(bin_ / "sendmail", "joe@remote.example", message=MESSAGE).returncode == 0
    assert len(list(drop.iterdir())) == 1
    with programs.Running(base) as gateway:
        end = time.monotonic() + 10
        while not (entries := gateway.entries()):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert b"Subject: hello\n" in entries[0].message.header


def test_control_files_of_qmail_win_over_what_the_gateway_says(bin_, base, gateway):
    (base / "qmail" / "control").mkdir()
    (base / "qmail" / "control" / "defaulthost").write_text("old.example\n")
    assert run(bin_ / "qmail-inject", "joe", message=b"Subject: x\n\n").returncode == 0
    (entry,) = gateway.entries()
    assert entry.sender == "ann@old.example"
    assert entry.recipients[0].recipient.original == "joe@old.example"


def test_forward_and_condredirect_hand_the_message_on(bin_, gateway, tmp_path):
    env = {"NEWSENDER": "n@x.example", "SENDER": "s@x.example", "DTLINE": "Delivered-To: joe@me.example\n"}
    done = run(bin_ / "forward", "a@x.example", "b@x.example", message=MESSAGE, **env)
    (entry,) = gateway.entries()
    assert done.stderr == f"forward: qp {entry.id}\n".encode()
    assert entry.sender == "n@x.example"
    assert len(entry.recipients) == 2
    (tmp_path / "m").write_bytes(MESSAGE)
    with (tmp_path / "m").open("rb") as message:
        command = [bin_ / "condredirect", "c@x.example", "cat"]
        done = subprocess.run(
            command, stdin=message, env={**env, "PATH": "/bin"}, capture_output=True, check=False
        )
    assert (done.returncode, done.stdout) == (99, MESSAGE)
    assert gateway.entries()[-1].sender == "s@x.example"


def test_a_refusal_is_told_in_the_gateways_words(bin_, base):
    with programs.Running(base, {"limits": {"message_size": "1K"}}):
        done = run(bin_ / "qmail-inject", "joe@x.example", message=MESSAGE + b"x" * 5000)
    assert done.returncode == qmail.PERMANENT
    assert done.stderr.startswith(
        b"qmail-inject: fatal: mail server permanently rejected message (#5.3.0): 5.3.4"
    )


def test_a_program_of_the_site_stands_in_for_qmail_queue(bin_, base):
    (base / "qmail" / "scan").write_text("#!/bin/sh\necho 'Dno viruses, please' >&6\nexit 82\n")
    (base / "qmail" / "scan").chmod(0o755)
    done = run(bin_ / "qmail-inject", "joe@x.example", message=MESSAGE, QMAILQUEUE="scan")
    assert done.returncode == qmail.PERMANENT
    assert done.stderr == b"qmail-inject: fatal: no viruses, please\n"
    done = run(bin_ / "qmail-inject", "joe@x.example", message=MESSAGE, QMAILQUEUE="missing")
    assert done.returncode == qmail.TEMPORARY


def test_a_queueing_program_that_ends_early_is_no_success(bin_, base):
    (base / "qmail" / "scan").write_text("#!/bin/sh\nexit 0\n")
    (base / "qmail" / "scan").chmod(0o755)
    done = run(bin_ / "qmail-inject", "j@x.example", message=MESSAGE + b"x" * 1_000_000, QMAILQUEUE="scan")
    assert done.returncode == qmail.TEMPORARY


def test_qread_and_qstat_ask_the_running_gateway(bin_, gateway):
    control = Console(Calls(gateway.worker).find)
    gateway.ask(control.start(gateway.state))
    assert run(bin_ / "sendmail", "-f", "a@x.example", "joe@remote.example", message=MESSAGE).returncode == 0
    (entry,) = gateway.entries()
    shown = run(bin_ / "mailq").stdout.decode()
    assert f"  #{entry.id}  {entry.size}  <a@x.example> \n" in shown
    assert "\tjoe@remote.example\n" in shown
    assert run(bin_ / "qmail-qstat").stdout.startswith(b"messages in queue: 1\nmessages in queue but not yet")
    gateway.ask(control.stop())


@pytest.mark.parametrize("name", ["qmail-qread", "qmail-qstat"])
def test_without_a_gateway_the_queue_cannot_be_read(bin_, name):
    done = run(bin_ / name)
    assert done.returncode == qmail.TEMPORARY
    assert b"the gateway cannot be asked" in done.stderr


def test_mailsubj_and_predate(bin_, gateway):
    assert run(bin_ / "mailsubj", "a subject", "joe@remote.example", message=b"text\n").returncode == 0
    (entry,) = gateway.entries()
    assert b"\nSubject: a subject\nTo: joe@remote.example\n" in entry.message.header
    assert bytes(entry.message).endswith(b"\n\ntext\n")
    done = run(bin_ / "predate", "cat", message=b"Subject: x\n\n", TZ="CET-1")
    assert done.stdout.startswith(b"Date: ")
    assert done.stdout.endswith(b" +0100\nSubject: x\n\n")


def test_showctl_names_what_is_there_and_what_is_not(bin_, gateway):
    shown = run(bin_ / "qmail-showctl").stdout.decode()
    assert "me: The name of this host.\n  me.example\n" in shown
    assert "locals: Domains that are delivered here.\n(Default.)\n" in shown
    (gateway.state / "qmail-control" / "odd").touch()
    assert "odd: I have no idea" in run(bin_ / "qmail-showctl").stdout.decode()


@pytest.fixture
def local(base, bin_):
    """Run qmail-local as an ordinary user in a home with these `.qmail` lines."""

    def run_local(lines, *options, message=MESSAGE, **env):
        home = base / "home"
        home.mkdir(exist_ok=True)
        (home / ".qmail-x").write_text(lines)
        for path in (home, home / ".qmail-x"):
            os.chown(path, programs.OWNER, -1)
        words = ("joe", str(home), "joe-x", "-", "x", "me.example", "s@x.example", "./Mailbox")
        user = {"user": programs.OWNER, "extra_groups": []} if os.geteuid() == 0 else {}
        given = {"PATH": "/usr/bin:/bin", **env}
        command = [bin_ / "qmail-local", *options, *words]
        return subprocess.run(
            command, input=message, env=given, capture_output=True, check=False, timeout=30, **user
        )

    return run_local


def test_qmail_local_delivers_forwards_and_tells(local, gateway, base):
    done = local("./Mailbox\n&a@remote.example\n&b@remote.example\n")
    (entry,) = gateway.entries()
    assert (done.returncode, done.stdout) == (0, f"did 1+2+0\nqp {entry.id}\n".encode())
    assert bytes(entry.message).partition(b"\n")[2] == b"Delivered-To: joe-x@me.example\n" + MESSAGE
    assert (base / "home" / "Mailbox").read_bytes().startswith(b"From s@x.example ")


@pytest.mark.parametrize(
    ("lines", "code"),
    [("|exit 100\n", 100), ("|exit 111\n", 111), ("|exit 99\n|exit 100\n", 0), ("./no/\n", 111)],
)
def test_qmail_local_ends_as_the_lines_say(local, lines, code):
    assert local(lines).returncode == code


def test_qmail_local_only_says_what_it_would_do(local, base):
    done = local("./Mailbox\n|exit 1\n", "-n")
    assert (done.returncode, done.stdout) == (0, b"mbox ./Mailbox\nprogram exit 1\ndid 1+0+1\n")
    assert not (base / "home" / "Mailbox").exists()


def test_qmail_local_tells_a_forward_that_nobody_took(local, base):
    (base / "qmail" / "full").write_text("#!/bin/sh\nexit 53\n")
    (base / "qmail" / "full").chmod(0o755)
    done = local("&a@remote.example\n", QMAILQUEUE="full")
    assert done.returncode == qmail.TEMPORARY
    assert b"Unable to forward message" in done.stdout


@pytest.mark.parametrize("name", sorted({*qmail.PROGRAMS} - {"qmail-local"}))
def test_programs_import_little(name):
    """What is imported decides how fast a program starts; a clock on a busy machine does not tell."""
    code = (
        f"import sys; sys.path.insert(0, {str(programs.PROGRAMS.parents[1])!r}); before = set(sys.modules)\n"
        "from gateway import qmail; from importlib import import_module\n"
        f"import_module('gateway.qmail.' + qmail.PROGRAMS[{name!r}])\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {
        "asyncio",
        "pathlib",
        "subprocess",
        "tempfile",
        "dataclasses",
        "logging",
        "email",
        "ssl",
        "inspect",
    }
    assert not loaded & heavy
    assert {one for one in loaded if one.startswith("gateway") and not one.startswith("gateway.qmail")} == {
        "gateway"
    }


def test_mailward_runs_them_too(gateway):
    command = [sys.executable, "-m", "gateway.commands", "qmail", "sendmail", "joe@remote.example"]
    env = {
        "MAILWARD_STATE": str(gateway.state),
        "PATH": "/bin",
        "PYTHONPATH": str(programs.PROGRAMS.parents[1]),
    }
    assert subprocess.run(command, input=MESSAGE, env=env, check=True).returncode == 0
    assert len(gateway.entries()) == 1


@pytest.mark.parametrize("given", [["qmail-nothing"], [], ["--help"]])
def test_an_unknown_program_is_told_with_those_there_are(given):
    command = [sys.executable, "-m", "gateway.commands", "qmail", *given]
    done = subprocess.run(command, capture_output=True, check=False, cwd=programs.PROGRAMS.parents[1])
    assert done.returncode == qmail.PERMANENT
    assert b"qmail-queue" in done.stderr


DIALOGUE = (
    b"RCPT TO:<x@y>\r\nEHLO me\r\nMAIL FROM:<@a,@b:ann@x.example> SIZE=1\r\nDATA\r\n"
    b'RCPT TO:<"a \\"b"@remote.example>\r\nrcpt to: c@remote.example\r\n'
    b"DATA\r\nSubject: x\r\n\r\n..dot\r\nbare\n.\r\nTURN\r\nQUIT\r\n"
)


def test_sendmail_bs_speaks_smtp(bin_, gateway):
    done = run(bin_ / "sendmail", "-bs", message=DIALOGUE)
    (entry,) = gateway.entries()
    replies = [line[:4] for line in done.stdout.decode().splitlines()]
    assert replies == [
        *(
            "220 ",
            "503 ",
            "250-",
            "250-",
            "250 ",
            "250 ",
            "503 ",
            "250 ",
            "250 ",
            "354 ",
            "250 ",
            "502 ",
            "221 ",
        )
    ]
    assert (done.returncode, entry.sender) == (0, "ann@x.example")
    assert [one.recipient.original for one in entry.recipients] == ['a "b@remote.example', "c@remote.example"]
    assert bytes(entry.message).endswith(b"\nSubject: x\n\n.dot\nbare\n")


def test_sendmail_bs_queues_nothing_when_the_message_is_cut(bin_, gateway):
    cut = DIALOGUE.partition(b"\n.\r\n")[0]
    assert run(bin_ / "sendmail", "-bs", message=cut).stdout.endswith(b"421 the message ended too early\r\n")
    assert gateway.entries() == []


def test_qmail_local_gives_programs_its_own_path(local, base):
    (base / "tools").mkdir()
    (base / "tools" / "special").write_text("#!/bin/sh\nexit 100\n")
    (base / "tools" / "special").chmod(0o755)
    assert local("|special\n", PATH=f"{base}/tools:/bin").returncode == 100
    assert local("|special\n").returncode == 111
