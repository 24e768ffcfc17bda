"""auth_pam: PAM's answer is the login's. As root, with users of the system: tests/agent/test_logins.py."""

import os

import pytest

from gateway import Credentials, Defer, Stages
from gateway.authentication.checkpassword import pam_program, run
from gateway.testing.build import session

CONF = "auth_pam: {service: mailward-of-no-file}\n"


async def said(chain, login, password):
    return (await chain.ask(Stages.authenticate, session(), Credentials("PLAIN", login, password))).value


async def test_nobody_is_let_in_whom_pam_does_not_know(chain_of):
    assert await said(chain_of(CONF, "auth_pam"), "no-user-of-this-host", "secret") is None
    assert await said(chain_of(CONF, "auth_pam"), "ann", None) is None


@pytest.mark.parametrize("data", [b"", b"ann", b"\0\0\0", b"ann\0", b"\xff\0\xff\0\0", b"a" * 512])
async def test_what_is_no_login_is_never_let_in(data):
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    try:
        assert await run(pam_program("login"), read) in (1, 111)
    finally:
        os.close(read)


async def test_a_doubt_is_none_of_the_clients(chain_of, monkeypatch):
    monkeypatch.setattr("gateway.authentication.checkpassword.sys.executable", "/nonexistent")
    assert isinstance(await said(chain_of(CONF, "auth_pam"), "ann", "secret"), Defer)
