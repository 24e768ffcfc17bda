"""auth_dovecot: Dovecot's words and ours. A real Dovecot is asked in tests/peers/test_auth_dovecot.py."""

import asyncio
import base64
from contextlib import asynccontextmanager

import pytest

from gateway import Accept, Credentials, Defer, Reject, Stages
from gateway.testing.build import session

GREETING = "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t7\nCUID\t1\nCOOKIE\tabc\nDONE\n"


async def said(chain, login="ann", password="secret", **about):
    asked = Credentials("PLAIN", login, password)
    return (await chain.ask(Stages.authenticate, session(**about), asked)).value


@asynccontextmanager
async def dovecot(folder, answer, greeting=GREETING):
    """Serve one answer to each request; gives what was asked."""
    heard = []

    async def serve(reader, writer):
        writer.write(greeting.encode())
        heard.extend([await reader.readline(), await reader.readline()])
        if line := await reader.readline():
            heard.append(line)
            writer.write(answer.encode())
        writer.close()

    async with await asyncio.start_unix_server(serve, folder / "auth"):
        yield heard


@pytest.fixture
def chain(chain_of, tmp_path):
    return chain_of(f"auth_dovecot: {{socket: {tmp_path}/auth, timeout: 5s}}\n", "auth_dovecot")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("OK\t1\tuser=ann\n", Accept),
        ("FAIL\t1\tuser=ann\n", type(None)),
        ("FAIL\t1\tuser=ann\tcode=user_disabled\tuser_disabled\n", Reject),
        ("FAIL\t1\tuser=ann\ttemp\n", Defer),
        ("FAIL\t2\nOK\t2\nFAIL\t1\n", type(None)),
        ("CONT\t1\tabc\n", Defer),
        ("OK\t1\tuser=ann", Defer),
        ("", Defer),
        ("x" * 9000 + "\n", Defer),
    ],
)
async def test_its_answer_is_ours(chain, tmp_path, answer, kind):
    async with dovecot(tmp_path, answer):
        assert type(await said(chain)) is kind


async def test_the_request_says_who_and_from_where(chain, tmp_path):
    async with dovecot(tmp_path, "OK\t1\n") as heard:
        await said(chain, "änn\tOK\n", "pä\tss\n", ip="192.0.2.9")
    *head, response = heard[2].decode().rstrip("\n").split("\t")
    assert heard[0] == b"VERSION\t1\t2\n"
    assert head[:5] == ["AUTH", "1", "PLAIN", "service=smtp", "rip=192.0.2.9"]
    given = base64.b64decode(response.removeprefix("resp="))
    assert given == "\0änn\tOK\n\0pä\tss\n".encode()
    # One line each, whatever stands in a login.
    assert len(heard) == 3


@pytest.mark.parametrize(
    "greeting", ["", "VERSION\t2\t0\nDONE\n", "220 mail.example.org ESMTP\n", "x\n" * 200, "MECH\tPLAIN\n"]
)
async def test_what_is_no_dovecot_is_a_doubt(chain_of, tmp_path, greeting):
    chain = chain_of(f"auth_dovecot: {{socket: {tmp_path}/auth, timeout: 1s}}\n", "auth_dovecot")
    async with dovecot(tmp_path, "OK\t1\n", greeting):
        assert isinstance(await said(chain), Defer)


async def test_where_nobody_answers_is_a_doubt(chain):
    assert isinstance(await said(chain), Defer)


@pytest.mark.parametrize(("login", "password"), [("ann", None), ("ann\0", "x"), ("ann", "\0x")])
async def test_what_cannot_be_asked_is_nobodys(chain, login, password):
    assert await said(chain, login, password) is None
