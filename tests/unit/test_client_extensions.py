"""The SMTP client's further words: AUTH, DSN, REQUIRETLS, LMTP, TLS from the first byte, sources."""

import asyncio
import base64
import ssl

import pytest
import trustme
from scramp import ScramMechanism

from gateway.address import Address
from gateway.errors import DialogueError, TlsFailed
from gateway.message import Message
from gateway.smtp import Connection, Envelope, Login, Target, Terms, Timeouts, unverified, verified
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
PATIENCE = Timeouts(connect=30, command=30, final=30)
LOGIN = Login("ann,=x", "sécret")
MUST = Terms(unverified(), required=True)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("host.example").configure_cert(context)
    return context


async def connect(host, terms=MUST, login=None, *, lmtp=False, sources=()):
    target = Target("host.example", "127.0.0.1", host.port, lmtp)
    return await Connection.connect(target, "me.example", PATIENCE, terms, login, sources)


def envelope(*recipients, **more):
    return Envelope(
        Address("s@me.example"), [Address(one) for one in recipients or ("u@x.example",)], 20, **more
    )


# AUTH


class LoginHost(ScriptedHost):
    """Answers what comes from AUTH on by a generator that is sent each line and yields each reply."""

    def __init__(self, mechanisms, exchange, **more):
        ehlo = f"250-host.example\r\n250-STARTTLS\r\n250 AUTH {mechanisms}"
        super().__init__({"EHLO": ehlo, "STARTTLS": "220 go"}, **more)
        self._exchange, self._talk = exchange, None

    async def _answer(self, writer, verb):
        line = self.commands[-1] if self.commands else ""
        if verb == "AUTH":
            self._talk = self._exchange(line)
            reply = next(self._talk)
        elif self._talk and verb != "QUIT":
            reply = self._talk.send(line)
        else:
            return await super()._answer(writer, verb)
        if not reply.startswith("334"):
            self._talk = None
        writer.write(reply.encode() + b"\r\n")
        await writer.drain()
        return True


def plain(line):
    word = base64.b64decode(line.split(" ")[2]).decode()
    yield "235 in" if word == f"\0{LOGIN.user}\0{LOGIN.password}" else "535 5.7.8 no"


def login(_line):
    user = yield "334 VXNlcm5hbWU6"
    password = yield "334 UGFzc3dvcmQ6"
    said = base64.b64decode(user).decode(), base64.b64decode(password).decode()
    yield "235 in" if said == (LOGIN.user, LOGIN.password) else "535 5.7.8 no"


def b64(text):
    return base64.b64encode(text.encode()).decode()


def scram(password=LOGIN.password, rounds=4096, end=None):
    mechanism = ScramMechanism("SCRAM-SHA-256")
    salt, stored, key, count = mechanism.make_auth_info(password, iteration_count=rounds)

    def exchange(line):
        server = mechanism.make_server(
            lambda user: (salt, stored, key, count) if user == LOGIN.user else None
        )
        server.set_client_first(base64.b64decode(line.split(" ")[2]).decode())
        final = yield f"334 {b64(server.get_server_first())}"
        try:
            server.set_client_final(base64.b64decode(final).decode())
        except Exception:  # noqa: BLE001 - whatever was wrong
            yield "535 5.7.8 no"
        answer = yield end or f"334 {b64(server.get_server_final())}"
        assert answer == ""
        yield "235 in"

    return exchange


@pytest.mark.parametrize(
    ("mechanisms", "exchange", "used"),
    [
        ("PLAIN", plain, "AUTH PLAIN"),
        ("LOGIN", login, "AUTH LOGIN"),
        ("LOGIN PLAIN", plain, "AUTH PLAIN"),
        ("plain login scram-sha-256", scram(), "AUTH SCRAM-SHA-256"),
        ("CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256", scram(), "AUTH SCRAM-SHA-256"),
    ],
)
async def test_we_log_in_by_the_best_mechanism(mechanisms, exchange, used, certificate):
    async with LoginHost(mechanisms, exchange, tls=certificate) as host:
        connection = await connect(host, login=LOGIN)
        assert (await connection.send(envelope(), MESSAGE))[0].result == "delivered"
        connection.quit()
    assert any(line.startswith(used) for line in host.commands)
    if "SCRAM" in used:
        assert not any(b64(LOGIN.password) in line for line in host.commands)


@pytest.mark.parametrize("logs_in", [True, False])
async def test_a_sender_whom_nobody_vouches_for_is_not_vouched_for_by_our_login(logs_in, certificate):
    async with LoginHost("PLAIN", plain, tls=certificate) as host:
        connection = await connect(host, login=LOGIN if logs_in else None)
        await connection.send(envelope(params={"AUTH": "<>"}), MESSAGE)
        connection.quit()
    (mail,) = [line for line in host.commands if line.startswith("MAIL")]
    assert mail.endswith(" AUTH=<>") is logs_in


@pytest.mark.parametrize(("length", "alone"), [(370, False), (371, True), (9000, True)])
async def test_a_login_too_long_for_a_command_line_goes_by_itself(length, alone, certificate):
    """RFC 4954 section 4: a response may be longer than a command."""
    known = Login(LOGIN.user, "p" * (length - len(LOGIN.user)))

    def exchange(line):
        _, _, word = line.partition("AUTH PLAIN ")
        said = word or (yield "334 ")
        yield "235 in" if said == b64(f"\0{known.user}\0{known.password}") else "535 5.7.8 no"

    async with LoginHost("PLAIN", exchange, tls=certificate) as host:
        (await connect(host, login=known)).quit()
    assert ("AUTH PLAIN" in host.commands) is alone


@pytest.mark.parametrize(
    ("mechanisms", "exchange"),
    [
        ("PLAIN", lambda _: iter(["535 5.7.8 no"])),
        ("PLAIN", lambda _: iter(["250 fine"])),
        ("PLAIN", lambda _: iter(["235-in\r\n535 out"])),
        ("LOGIN", lambda _: iter(["235 in"])),
        ("CRAM-MD5 GSSAPI", plain),
        ("", plain),
        ("SCRAM-SHA-256", scram(password="another")),
        ("SCRAM-SHA-256", scram(rounds=200_001)),
        ("SCRAM-SHA-256", scram(end="235 in")),
        ("SCRAM-SHA-256", scram(end=f"334 {b64('v=' + b64('x' * 32))}")),
        ("SCRAM-SHA-256", scram(end="334 v=no base64")),
        ("SCRAM-SHA-256", scram(end=f"334 {b64('e=other-error')}")),
        ("SCRAM-SHA-256", lambda _: iter([f"334 {b64('r=mine,s=c2FsdA==,i=4096')}"])),
        ("SCRAM-SHA-256", lambda _: iter([f"334 {b64('what')}"])),
        ("SCRAM-SHA-256", lambda _: iter(["334 /w=="])),
        ("SCRAM-SHA-256", lambda line: iter([_first(line, 99)])),
        ("SCRAM-SHA-256", lambda line: iter([_first(line, "9" * 9)])),
        ("SCRAM-SHA-256", lambda line: iter([_first(line, "x")])),
    ],
)
async def test_a_login_that_fails_leads_elsewhere_and_fails_no_mail(mechanisms, exchange, certificate):
    async with LoginHost(mechanisms, exchange, tls=certificate) as host:
        with pytest.raises(DialogueError) as caught:
            await asyncio.wait_for(connect(host, login=LOGIN), 50)
    assert caught.value.status.startswith("4")
    assert not any(line.startswith("MAIL") for line in host.commands)


def _first(line, rounds):
    nonce = base64.b64decode(line.split(" ")[2]).decode().rpartition("r=")[2]
    return f"334 {b64(f'r={nonce}more,s=c2FsdHNhbHQ=,i={rounds}')}"


@pytest.mark.parametrize("terms", [None, Terms(unverified())])
async def test_no_password_is_sent_without_tls(terms, certificate):
    del certificate
    async with ScriptedHost({"EHLO": "250-host.example\r\n250 AUTH PLAIN LOGIN SCRAM-SHA-256"}) as host:
        with pytest.raises(TlsFailed, match="without TLS"):
            await connect(host, terms, LOGIN)
    assert host.commands == ["EHLO me.example"]


def test_a_password_is_not_shown():
    assert "sécret" not in repr(LOGIN)


# TLS from the first byte


async def test_tls_before_the_greeting(authority, certificate, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    heard = []

    async def serve(reader, writer):
        writer.write(b"220 host.example\r\n")
        while line := await reader.readline():
            heard.append(line)
            writer.write(
                {b"DATA\r\n": b"354 go\r\n", b"EHLO me.example\r\n": b"250 host\r\n"}.get(line, b"250 ok\r\n")
            )

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate)
    target = Target("host.example", "127.0.0.1", server.sockets[0].getsockname()[1])
    terms = Terms(verified(str(tmp_path / "ca.pem")), required=True, implicit=True, name="host.example")
    connection = await Connection.connect(target, "me.example", PATIENCE, terms)
    assert connection.secure
    assert connection.tls[0].startswith("TLS")
    assert connection.source == "127.0.0.1"
    connection.quit()
    server.close()
    assert b"STARTTLS\r\n" not in heard


async def test_a_plain_host_in_its_place_hears_no_word():
    async with ScriptedHost() as host:
        with pytest.raises(TlsFailed):
            await asyncio.wait_for(connect(host, Terms(unverified(), required=True, implicit=True)), 50)
    assert not any("EHLO" in line for line in host.commands)


# DSN, REQUIRETLS, LMTP


async def test_what_the_sender_wants_to_be_told_is_passed_on():
    wants = envelope(
        "a@x.example",
        "b@x.example",
        params={"RET": "HDRS", "ENVID": "QQ+2B314", "SIZE": "1"},
        rcpt_params=[{"NOTIFY": "SUCCESS,DELAY", "ORCPT": "rfc822;Old+40x.example"}, {}],
    )
    async with ScriptedHost({"EHLO": "250-x\r\n250 DSN"}) as knows, ScriptedHost() as other:
        for host in (knows, other):
            connection = await connect(host, None)
            await connection.send(wants, MESSAGE)
            connection.quit()
    assert knows.commands[1:4] == [
        "MAIL FROM:<s@me.example> RET=HDRS ENVID=QQ+2B314",
        "RCPT TO:<a@x.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Old+40x.example",
        "RCPT TO:<b@x.example>",
    ]
    assert other.commands[1:3] == ["MAIL FROM:<s@me.example>", "RCPT TO:<a@x.example>"]


@pytest.mark.parametrize(
    ("offered", "international", "given", "passed"),
    [
        ("SMTPUTF8", True, "utf-8;jürgen@x.example", "utf-8;jürgen@x.example"),
        ("SMTPUTF8", False, "utf-8;jürgen@x.example", r"utf-8;j\x{FC}rgen@x.example"),
        ("SIZE", False, "UTF-8;jürgen@x.example", r"UTF-8;j\x{FC}rgen@x.example"),
        ("SIZE", False, r"utf-8;j\x{FC}rgen@x.example", r"utf-8;j\x{FC}rgen@x.example"),
        ("SIZE", False, "rfc822;" + "a" * 493, "rfc822;" + "a" * 493),
    ],
)
async def test_the_original_recipient_is_passed_on_in_a_form_that_the_host_takes(
    offered, international, given, passed
):
    wants = envelope(international=international, rcpt_params=[{"ORCPT": given}])
    async with ScriptedHost({"EHLO": f"250-x\r\n250-DSN\r\n250 {offered}"}) as host:
        connection = await connect(host, None)
        await connection.send(wants, MESSAGE)
        connection.quit()
    assert host.commands[2] == f"RCPT TO:<u@x.example> ORCPT={passed}"


@pytest.mark.parametrize(
    ("offered", "terms", "status"),
    [("REQUIRETLS", MUST, ""), ("SIZE", MUST, "5.7.30"), ("REQUIRETLS", None, "5.7.30")],
)
async def test_requiretls_goes_to_hosts_that_promise_it_under_tls(offered, terms, status, certificate):
    script = {"EHLO": f"250-x\r\n250-STARTTLS\r\n250 {offered}", "STARTTLS": "220 go"}
    async with ScriptedHost(script, tls=certificate) as host:
        connection = await connect(host, terms)
        try:
            await connection.send(envelope(require_tls=True), MESSAGE)
            assert status == ""
        except DialogueError as error:
            assert error.status == status  # noqa: PT017 - both ends are asked
        connection.quit()
    said = [line for line in host.commands if line.startswith("MAIL")]
    assert said == ([] if status else ["MAIL FROM:<s@me.example> REQUIRETLS"])


@pytest.mark.parametrize("offered", ["REQUIRETLS", "SIZE"])
async def test_what_does_not_depend_on_requiretls_has_it_where_it_is_offered(offered, certificate):
    script = {"EHLO": f"250-x\r\n250-STARTTLS\r\n250 {offered}", "STARTTLS": "220 go"}
    async with ScriptedHost(script, tls=certificate) as host:
        connection = await connect(host, MUST)
        await connection.send(envelope(params={"REQUIRETLS": ""}), MESSAGE)
        connection.quit()
    (said,) = [line for line in host.commands if line.startswith("MAIL")]
    assert said.endswith(" REQUIRETLS") == (offered == "REQUIRETLS")


@pytest.mark.parametrize("lhlo", ["250 host.example", "250-host.example\r\n250 PIPELINING"])
async def test_lmtp_answers_for_each_recipient(lhlo):
    script = {
        "LHLO": lhlo,
        "RCPT": ["250 a", "550 5.1.1 who", "250 c", "250 d"],
        ".": ["250 2.1.5 a has it\r\n552 5.2.2 c is full\r\n450 4.2.1 d later", "250 2.1.5 once more"],
    }
    async with ScriptedHost(script) as host:
        connection = await connect(host, None, lmtp=True)
        verdicts = await connection.send(envelope("a@x", "b@x", "c@x", "d@x"), MESSAGE)
        assert [(one.result, one.status) for one in verdicts] == [
            ("delivered", "2.1.5"),
            ("failed", "5.1.1"),
            ("failed", "5.2.2"),
            ("deferred", "4.2.1"),
        ]
        # The connection is in step for another message.
        assert (await connection.send(envelope("e@x"), MESSAGE))[0].result == "delivered"
        connection.quit()
    assert host.commands[0] == "LHLO me.example"
    assert len(host.contents) == 2


async def test_a_host_without_lhlo_is_not_asked_by_helo():
    async with ScriptedHost({"LHLO": "500 what"}) as host:
        with pytest.raises(DialogueError):
            await connect(host, None, lmtp=True)
    assert host.commands == ["LHLO me.example"]


async def test_lmtp_at_a_socket_of_this_host(tmp_path):
    heard = []

    async def serve(reader, writer):
        writer.write(b"220 lmtp\r\n")
        while line := await reader.readline():
            heard.append(line)
            writer.write(
                b"354 go\r\n" if line == b"DATA\r\n" else b"" if line[:1] in b"Sb\r" else b"250 ok\r\n"
            )

    server = await asyncio.start_unix_server(serve, tmp_path / "lmtp")
    target = Target("", "", 0, lmtp=True, path=str(tmp_path / "lmtp"))
    connection = await Connection.connect(target, "me.example", PATIENCE)
    assert (await connection.send(envelope(), MESSAGE))[0].result == "delivered"
    connection.quit()
    server.close()
    assert str(target) == f"unix:{tmp_path}/lmtp"


# The address that we speak from


async def test_we_connect_from_the_source_of_the_hosts_family():
    async with ScriptedHost() as host:
        seen = []
        host._script["greeting"] = [lambda writer: _note(writer, seen)]
        connection = await connect(host, None, sources=("::1", "127.0.0.9", "127.0.0.8"))
        connection.quit()
    assert (seen, connection.source) == (["127.0.0.9"], "127.0.0.9")


async def _note(writer, seen):
    seen.append(writer.get_extra_info("peername")[0])
    writer.write(b"220 hi\r\n")


async def test_a_source_that_is_not_ours_is_a_fault_for_now():
    async with ScriptedHost() as host:
        with pytest.raises(DialogueError) as caught:
            await connect(host, None, sources=("192.0.2.99",))
    assert caught.value.status == "4.4.1"
