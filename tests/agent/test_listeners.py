"""Listeners under the agent: what it has bound is the supervisor's to close."""

import socket

import pytest
from processes import free_port


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
