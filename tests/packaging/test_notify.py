"""systemd hears how far the gateway is, and from its main process alone."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.partition.notify import notify

CONF = """\
gateway: {hostname: mail.example.org, state: var, workers: 1, user: nobody}
listeners: [{name: mx, protocol: smtp, address: "127.0.0.1:0"}]
"""
_CREDENTIALS = struct.Struct("3i")


@contextmanager
def manager(address):
    """Listen as systemd does: it knows from the kernel who speaks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        one.bind(address)
        one.settimeout(50)
        yield one


def heard(one):
    """Give the next (word, pid)."""
    data, more, _, _ = one.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    return data.decode(), _CREDENTIALS.unpack(more[0][2])[0]


def test_the_main_process_tells_of_start_reload_and_end():
    with tempfile.TemporaryDirectory(prefix="mailward-notify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        conf = folder / "conf.d"
        conf.mkdir()
        (conf / "1.yaml").write_text(CONF)
        with manager(f"{folder}/notify") as one:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway.commands", "run", "--conf", str(conf)],
                stdout=subprocess.DEVNULL,
                env=os.environ | {"NOTIFY_SOCKET": f"{folder}/notify"},
            )
            try:
                assert heard(one) == ("READY=1", process.pid)
                process.send_signal(signal.SIGHUP)
                word, speaker = heard(one)
                assert word.startswith("RELOADING=1\nMONOTONIC_USEC=")
                assert speaker == process.pid
                assert heard(one) == ("READY=1", process.pid)
                (conf / "2.yaml").write_text("no_such_section: {}\n")
                process.send_signal(signal.SIGHUP)
                assert heard(one)[0].startswith("RELOADING=1")
                assert heard(one) == ("READY=1", process.pid)  # the old configuration runs on
            finally:
                process.terminate()
            assert heard(one) == ("STOPPING=1", process.pid)
            assert process.wait(50) == 0


def test_an_abstract_address(monkeypatch):
    with manager("\0mailward-notify-test") as one:
        monkeypatch.setenv("NOTIFY_SOCKET", "@mailward-notify-test")
        notify("READY")
        assert heard(one) == ("READY=1", os.getpid())


@pytest.mark.parametrize("address", ["", "nonsense", "/nowhere/at/all", "@nobody-listens-here"])
def test_nobody_who_hears_it_is_no_failure(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("STOPPING")
