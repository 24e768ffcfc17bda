"""auth_checkpassword: a program is given login and password over fd 3, and its exit code is the answer."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from gateway import Accept, ConfigError, Credentials, Defer, Stages
from gateway.authentication.checkpassword import run
from gateway.testing.build import session


async def said(chain, login="ann", password="secret"):
    asked = Credentials("PLAIN", login, password)
    return (await chain.ask(Stages.authenticate, session(), asked)).value


@pytest.fixture
def chain(chain_of, tmp_path):
    """Give `chain(script)`: a chain that asks a program of these lines."""

    def make(script):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return chain_of(f"auth_checkpassword: {{program: [{path}, /bin/true]}}\n", "auth_checkpassword")

    return make


async def test_it_gets_login_and_password_and_nothing_else(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    made = chain(
        f"cat <&3 > {tmp_path}/given; ls /proc/$$/fd > {tmp_path}/open; env > {tmp_path}/env; exec $1"
    )
    assert isinstance(await said(made, "änn", "päss word"), Accept)
    assert (tmp_path / "given").read_bytes() == "änn\0päss word\0\0".encode()
    # 255 is bash's own: the script.
    assert set((tmp_path / "open").read_text().split()) <= {"0", "1", "2", "3", "255"}
    assert "SECRET" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("exit 0", Accept),
        ("exit 1", type(None)),
        ("exit 2", Defer),
        ("exit 111", Defer),
        ("kill -9 $$", Defer),
    ],
)
async def test_its_exit_code_is_the_answer(chain, script, answer):
    assert type(await said(chain(script))) is answer


async def test_only_the_right_password_is_right(chain):
    made = chain("[[ $(tr '\\0' : <&3) == ann:secret:: ]]")
    assert isinstance(await said(made), Accept)
    assert await said(made, password="secret:") is None
    assert await said(made, "ann:secret", "") is None


@pytest.mark.parametrize(
    ("login", "password"), [("", "x"), ("ann\0root", "x"), ("ann", "x\0"), ("ann", "x" * 600), ("ann", None)]
)
async def test_what_cannot_be_written_is_nobodys(chain, login, password, tmp_path):
    assert await said(chain(f"touch {tmp_path}/ran"), login, password) is None
    assert not (tmp_path / "ran").exists()


async def test_a_program_that_is_missing_is_a_doubt(chain_of):
    made = chain_of("auth_checkpassword: {program: [/nonexistent]}\n", "auth_checkpassword")
    assert isinstance(await said(made), Defer)


async def test_a_program_that_hangs_is_killed_with_its_children(tmp_path):
    path = tmp_path / "program"
    path.write_text(f"#!/bin/bash\nsleep 300 & echo $! > {tmp_path}/pid; wait\n")
    path.chmod(0o755)
    began = time.monotonic()
    nothing = os.open("/dev/null", os.O_RDONLY)
    assert await run([str(path)], nothing, 1.0) == 111
    os.close(nothing)
    assert time.monotonic() - began < 100
    if (tmp_path / "pid").exists():
        status = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
        for _ in range(1000):
            if not status.exists() or status.read_text().split()[2] == "Z":
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("what it has started lives on")


def test_the_program_is_an_absolute_path(chain_of):
    with pytest.raises(ConfigError, match="vchkpw is no absolute path"):
        chain_of("auth_checkpassword: {program: [vchkpw]}\n", "auth_checkpassword")
