"""`mailward run` starts whole or not at all, and says what to mend."""

import contextlib
import os
import pwd
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gateway.journal import read

ROOT = os.geteuid() == 0


@pytest.fixture
def site():
    """Make a configuration that starts, in a folder that the user whom root becomes may enter."""
    with tempfile.TemporaryDirectory(prefix="mailward-run-", ignore_cleanup_errors=True) as folder:
        yield Site(Path(folder))


class Site:
    def __init__(self, folder):
        self.folder = folder
        self.conf = folder / "conf.d"
        self.conf.mkdir()
        folder.chmod(0o755)
        user = f", user: {pwd.getpwuid(65534).pw_name}" if ROOT else ""
        self.write("10.yaml", f"gateway: {{hostname: mail.example.org, state: var{user}}}\n")
        self.write("20.yaml", 'listeners:\n  - {name: mx, protocol: smtp, address: "127.0.0.1:0"}\n')

    def write(self, name, text):
        (self.conf / name).write_text(text)

    def plugin(self, stem, text):
        (self.folder / "plugins").mkdir()
        (self.folder / "plugins" / f"{stem}.py").write_text(text)
        self.write("90.yaml", "plugins: {folders: [plugins]}\n")

    def start(self, **more):
        return subprocess.Popen(
            [sys.executable, "-m", "gateway.commands", "run", "--conf", self.conf],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def refused(self):
        done = self.start()
        _, said = done.communicate(timeout=20)
        assert done.returncode == 1
        assert "Traceback" not in said
        return said


@contextlib.contextmanager
def running(site):
    process = site.start()
    try:
        assert "serves" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_it_starts_says_why_it_does_not_reload_and_sigterm_ends_it_with_0(site):
    with running(site) as process:
        site.write("90.yaml", "nonsense: 1\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline().startswith("conf.d/90.yaml:1: nonsense: unknown section")
        assert process.stderr.readline() == "nothing was reloaded: the old configuration runs on\n"
    assert process.returncode == 0


def ended_cleanly(process):
    """Let it end; gives what it printed. Nobody of its group is left, nor a socket."""
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0, wrong
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return said


def test_a_signal_before_anybody_could_listen_ends_it_in_order(site):
    """A pipe among the settings holds it up where it reads them; whoever reads them after it finds a file."""
    os.mkfifo(site.conf / "05.yaml", 0o644)
    site.write("file", "")
    process = site.start(start_new_session=True)
    with (site.conf / "05.yaml").open("w"):
        process.send_signal(signal.SIGTERM)
        (site.conf / "file").rename(site.conf / "05.yaml")
    assert ended_cleanly(process) == ""
    stopped = [one for one in read(site.folder / "var/journal") if one["event"] == "gateway.stopped"]
    assert [one["reason"] for one in stopped] == ["SIGTERM"]
    assert not {"control", "submit"} & {one.name for one in (site.folder / "var").iterdir()}


SIGNALLING = """
import os, signal
from gateway import Plugin, hookimpl

class Signalling(Plugin):
    @hookimpl
    def startup(self):
        try:
            self.site.state.joinpath("sent").touch(exist_ok=False)
        except FileExistsError:
            return
        {how}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["os.kill(os.getppid(), signal.SIGTERM)", "os.killpg(os.getpgid(os.getppid()), signal.SIGINT)"]
)
def test_a_signal_while_workers_start_ends_it_in_order(site, how):
    site.plugin("signalling", SIGNALLING.format(how=how))
    assert ended_cleanly(site.start(start_new_session=True)) == ""


@pytest.mark.slow
def test_a_reload_that_is_asked_for_while_workers_start_follows_the_start(site):
    site.plugin("signalling", SIGNALLING.format(how="os.kill(os.getppid(), signal.SIGHUP)"))
    process = site.start(start_new_session=True)
    assert "serves" in process.stdout.readline()
    end = time.monotonic() + 40
    while [one["event"] for one in read(site.folder / "var/journal")].count("config.loaded") < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    ended_cleanly(process)


@pytest.mark.slow
def test_where_events_are_read_a_signal_is_answered_by_an_event_alone(site):
    site.write("30.yaml", "journal: {outputs: [{to: stdout}]}\n")
    process = site.start()
    while "gateway.started" not in process.stdout.readline():
        assert process.poll() is None
    site.write("90.yaml", "nonsense: 1\n")
    process.send_signal(signal.SIGHUP)
    while "config.rejected" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=20)[1] == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\n", "conf.d/90.yaml:"),
        (
            "limits: {recipient: 5}\n",
            "conf.d/90.yaml:1: limits.recipient: unknown key (did you mean recipients?)",
        ),
        ("rcpthost: {}\n", "conf.d/90.yaml:1: rcpthost: unknown section (did you mean rcpthosts?)"),
        (
            'listeners: [{protocol: smtp, address: "[2001:db8::25]:2525"}]\n',
            "listener smtp-2525: cannot listen at",
        ),
        ("gateway: {workers: 65}\n", "conf.d/90.yaml:1"),
        ("plugins: {folders: [nowhere]}\n", "nowhere"),
    ],
)
def test_a_wrong_configuration(site, text, said):
    site.write("90.yaml", text)
    assert said in site.refused()
    assert not (site.folder / "var/queue").exists()


def test_a_plugin_that_raises_at_import(site):
    site.plugin("broken", "x = 1\nraise RuntimeError('boom')\n")
    assert f"{site.folder}/plugins/broken.py:2: RuntimeError: boom" in site.refused()
    assert not (site.folder / "var/queue").exists()


def test_a_port_that_is_taken(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site.write("90.yaml", f'listeners: [{{name: two, protocol: smtp, address: "127.0.0.1:{port}"}}]\n')
        assert f"listener two: cannot listen at 127.0.0.1:{port}: Address already in use" in site.refused()
    assert not (site.folder / "var/queue").exists()


def test_a_state_that_another_gateway_has(site):
    with running(site):
        assert str(site.folder / "var") in site.refused()


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_root_needs_a_user_to_become(site):
    site.write("10.yaml", "gateway: {hostname: mail.example.org, state: var}\n")
    # `check` says the same.
    assert site.refused().startswith(
        "conf.d/10.yaml:1: gateway.user: set the user to become: the gateway does"
    )


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_all_but_the_agent_leaves_root_for_good(site):
    with running(site) as process:
        supervisor = serving(process)
        found = [Path(f"/proc/{pid}/status").read_text() for pid in (supervisor, *children(supervisor))]
    assert len(found) > 1
    for status in found:
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "Gid:\t65534\t65534\t65534\t65534" in status
        assert "CapEff:\t0000000000000000" in status
        assert "Groups:\t65534" in status


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def serving(process):
    """Give the supervisor's number: as root an agent stands before it."""
    return children(process.pid)[0] if ROOT else process.pid


def test_it_may_open_as_many_files_as_the_system_lets_it(site):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with running(site) as process:
            limits = Path(f"/proc/{serving(process)}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert re.search(rf"Max open files +{hard} +{hard} ", limits)


def test_no_configuration_at_all_names_what_helps(tmp_path):
    environment = {**os.environ, "MAILWARD_CONF": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway.commands", "run"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "mailward init" in done.stderr
    assert "mailward run --demo" in done.stderr
