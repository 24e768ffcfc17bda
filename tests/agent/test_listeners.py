"""Listeners of a gateway that root has started, in a folder where the gateway's user may not write."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import free_port

NOBODY = 65534
LMTP = 'listeners: [{{name: lmtp, protocol: lmtp, address: "unix:{path}"}}]\n'
#: A client that is some other user.
KNOCK = """\
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
print(link.recv(100).decode())
"""


def greeting(path):
    """Connect as nobody; give what is said, or the error."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", KNOCK, path],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout or done.stderr


@pytest.fixture
def path(site):
    """Give a place for a socket; behind the test the gateway is as before."""
    yield site.base / "lmtp.sock"
    site.configure()
    site.reload()


def test_whoever_reaches_the_socket_may_connect_and_it_comes_and_goes_by_reload(site, path):
    for _ in range(2):
        site.configure(LMTP.format(path=path))
        site.reload()
        assert "220 mail.example.org LMTP" in greeting(path)
        site.configure()
        site.reload()
        assert not path.exists()


def test_a_socket_that_was_left_behind_is_no_obstacle(site, path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    site.configure(LMTP.format(path=path))
    site.reload()
    assert "220 mail.example.org LMTP" in greeting(path)


def test_a_listener_moves_by_a_reload_and_back(site):
    here, there = site.port, free_port()
    try:
        for old, new in ((here, there), (there, here)):
            site.configure(port=new)
            site.reload()
            with socket.create_connection(("127.0.0.1", new), 20) as client:
                assert client.recv(4) == b"220 "
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", old), 20)
    finally:
        site.configure(port=here)
        site.reload()


def test_a_reload_that_a_worker_refuses_leaves_the_old_socket_where_it_is(site, path):
    site.configure(LMTP.format(path=path))
    site.reload()
    site.configure("auth_file: {file: missing}\n")
    with pytest.raises(Exception, match="missing"):
        site.reload()
    assert "220 mail.example.org LMTP" in greeting(path)


def test_the_end_is_clean_and_takes_the_sockets_with_it(site, users):
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailward-agent-", dir="/srv")))
        base.chmod(0o755)
        made = type(site)(base, users)
        first, second = base / "first.sock", base / "second.sock"
        made.configure(LMTP.format(path=first))
        made.start()
        made.configure(LMTP.format(path=first) + LMTP.format(path=second)[len("listeners: ") :])
        made.configure(
            f'listeners: [{{name: one, protocol: lmtp, address: "unix:{first}"}},'
            f' {{name: two, protocol: lmtp, address: "unix:{second}"}}]\n'
        )
        made.reload()
        assert first.is_socket()
        assert second.is_socket()
        assert made.end() == 0
        assert (base / "stderr").read_text() == ""
        (told,) = (one for one in made.events() if one["event"] == "gateway.stopped")
        assert told["reason"] == "SIGTERM"
        assert not os.path.lexists(first)
        assert not os.path.lexists(second)
