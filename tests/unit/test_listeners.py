import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.endpoint import Endpoint
from gateway.errors import ListenError
from gateway.listeners import close_sockets, open_sockets, remove_path, share_out


@dataclass
class Listener:
    address: Endpoint
    name: str = "mx"


def listener(text):
    return Listener(Endpoint.parse(text))


@pytest.fixture
def shares():
    """Give `shares(text, workers)`: the sockets of each worker, closed at the end."""
    made = []

    def make(*texts, workers=3):
        made.extend(found := share_out([listener(text) for text in texts], workers))
        return found

    yield make
    for share in made:
        close_sockets(share)


def test_each_worker_has_a_socket_of_its_own_at_one_port_and_the_kernel_shares_out(shares):
    made = shares("127.0.0.1:0")
    own = [share[Endpoint.parse("127.0.0.1:0")][0] for share in made]
    (name,) = {one.getsockname() for one in own}
    clients = [socket.create_connection(name) for _ in range(60)]
    taken = []
    for one in own:
        count = 0
        try:
            while True:
                one.accept()[0].close()
                count += 1
        except BlockingIOError:
            taken.append(count)
    for client in clients:
        client.close()
    assert sum(taken) == 60
    assert all(taken)


def test_a_star_is_both_families_for_each(shares):
    for share in shares("*:0", workers=2):
        assert {one.family for one in share[Endpoint.parse("*:0")]} <= {socket.AF_INET, socket.AF_INET6}
        assert share[Endpoint.parse("*:0")]


def test_a_path_is_one_socket_for_all_and_goes_with_them(tmp_path):
    path = tmp_path / "socket"
    made = share_out([listener(f"unix:{path}")], 2)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted = made[1][Endpoint.parse(f"unix:{path}")][0].accept()[0]
        accepted.close()
    close_sockets(made[0], paths=False)
    assert path.exists()
    close_sockets(made[1])
    assert not path.exists()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_port_of_another_gateway_is_taken_though_both_may_share(shares, workers):
    (share, *_) = shares("127.0.0.1:0")
    port = share[Endpoint.parse("127.0.0.1:0")][0].getsockname()[1]
    with pytest.raises(ListenError, match=f"listener mx: cannot listen at 127.0.0.1:{port}"):
        share_out([listener("127.0.0.1:0"), listener(f"127.0.0.1:{port}")], workers)


def test_one_that_cannot_be_opened_leaves_none_open(tmp_path):
    path = tmp_path / "socket"
    with pytest.raises(ListenError, match="does not have that address"):
        open_sockets([listener(f"unix:{path}"), listener("192.0.2.1:25")])
    assert not path.exists()


def test_all_who_reach_a_path_may_connect_and_a_dead_socket_there_is_replaced(shares, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    shares(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


@pytest.mark.parametrize("kind", ["file", "link to one", "link to a dead socket"])
def test_what_is_no_socket_is_never_taken_for_a_dead_one(tmp_path, kind):
    path = tmp_path / "x.pem"
    if kind == "file":
        path.write_bytes(b"a key")
    elif kind == "link to one":
        (tmp_path / "key").write_bytes(b"a key")
        path.symlink_to(tmp_path / "key")
    else:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "dead"))
        path.symlink_to(tmp_path / "dead")
    with pytest.raises(ListenError, match=r"x\.pem is a file and no socket: change listeners\.address"):
        open_sockets([listener(f"unix:{path}")])
    assert os.path.lexists(path)
    remove_path(Endpoint.parse(f"unix:{path}"))
    assert os.path.lexists(path)


def test_a_path_in_use_and_one_in_a_closed_folder_say_what_to_do(shares, tmp_path):
    shares(f"unix:{tmp_path}/socket")
    with pytest.raises(ListenError, match="stop what serves it"):
        open_sockets([listener(f"unix:{tmp_path}/socket")])
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    with as_no_root(), pytest.raises(ListenError) as caught:
        open_sockets([listener(f"unix:{closed}/socket")])
    assert f"{closed} must be writable by who starts the gateway" in str(caught.value)
    assert "1024" not in str(caught.value)


@contextlib.contextmanager
def as_no_root():
    """Have no more rights than a user, for a while."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_path_that_may_not_be_removed_ends_nothing(tmp_path, monkeypatch):
    def refused(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    made = share_out([listener(f"unix:{tmp_path}/socket"), listener("127.0.0.1:0")], 1)
    monkeypatch.setattr(Path, "unlink", refused)
    close_sockets(made[0])
    assert [one.fileno() for some in made[0].values() for one in some] == [-1, -1]


def test_a_path_of_systemds_is_left_to_it(shares, tmp_path, monkeypatch):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as given, contextlib.ExitStack() as stack:
        given.bind(str(path))
        given.listen()
        # It comes as file 3, whatever that is in this process.
        dup = os.dup
        monkeypatch.setattr(os, "dup", lambda number: dup(given.fileno() if number == 3 else number))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        (share,) = shares(f"unix:{path}", workers=1)
        close_sockets(share)
        assert path.is_socket()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
