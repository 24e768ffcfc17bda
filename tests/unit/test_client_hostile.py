"""The SMTP client against hosts that break the protocol on purpose: the right class, and bounded memory."""

import asyncio
import re
import resource

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.address import Address
from gateway.errors import DialogueError, TlsFailed
from gateway.message import FileBody, Message
from gateway.smtp import Connection, Envelope, Login, Target, Terms, Timeouts, unverified
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
PATIENCE = Timeouts(connect=30, command=30, final=30)
OFFER = "250-host.example\r\n250-PIPELINING\r\n250 STARTTLS"


async def offer(port, *, terms=None, login=None, lmtp=False, timeouts=PATIENCE, message=MESSAGE):
    target = Target("host.example", "127.0.0.1", port, lmtp)
    connection = await Connection.connect(target, "me.example", timeouts, terms, login)
    try:
        envelope = Envelope(Address("s@me.example"), [Address("a@x.example"), Address("b@x.example")], 20)
        return await connection.send(envelope, message)
    finally:
        connection.quit()


async def fate(host, **more):
    """Give what became of it: "elsewhere" when another host may be tried."""
    try:
        verdicts = await asyncio.wait_for(offer(host.port, **more), 50)
    except DialogueError as error:
        return "elsewhere" if error.status.startswith("4") else error.status
    (result,) = {verdict.result for verdict in verdicts}
    return result


@pytest.fixture(scope="module")
def certificate():
    """Give what a host's TLS needs; any certificate will do here."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("host.example").configure_cert(context)
    return context


# The table: a fault at each state, and what it makes of the mail.

#: Before MAIL was answered another host may be tried; after it, mail waits.
STATES = {
    "greeting": "elsewhere",
    "EHLO": "elsewhere",
    "STARTTLS": "elsewhere",
    "MAIL": "elsewhere",
    "RCPT": "deferred",
    "DATA": "deferred",
    ".": "deferred",
}


def send(raw):
    async def answer(writer):
        writer.write(raw)
        await writer.drain()
        writer.close()

    return answer


FAULTS = {
    "closes": None,
    "closes in the midst of a line": send(b"250"),
    "closes in the midst of a reply": send(b"250-and\r\n"),
    "no code": send(b"hello there\r\n"),
    "an empty line": send(b"\r\n"),
    "NUL bytes": send(b"\0" * 600 + b"\r\n"),
    "a code of four digits": send(b"2500 fine\r\n"),
    "a code below 200": send(b"199 fine\r\n"),
    "a line in the midst without a code": send(b"250-a\r\nb\r\n250 c\r\n"),
    "no line end, for ever": send(b"250 " + b"x" * 300_000),
    "CR alone as line end": send(b"250 fine\r"),
    "TLS without being asked": send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64),
    "HTTP": send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "a reply of 30,000 lines": send(b"250-z\r\n" * 30_000),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("state", STATES)
async def test_a_fault_at_each_state_has_the_right_class(state, fault, certificate):
    script = {"EHLO": OFFER, "STARTTLS": "220 go", state: FAULTS[fault]}
    terms = Terms(unverified(), required=True) if state == "STARTTLS" else None
    async with ScriptedHost(script, tls=certificate) as host:
        assert await fate(host, terms=terms) == STATES[state]
    assert len(host.contents) == (state == ".")


@pytest.mark.parametrize("state", ["LHLO", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("fault", ["closes", "no code", "closes in the midst of a reply"])
async def test_the_same_by_lmtp(state, fault):
    script = {"LHLO": "250 host.example", state: FAULTS[fault]}
    async with ScriptedHost(script) as host:
        assert await fate(host, lmtp=True) == STATES.get(state, "elsewhere")


@pytest.mark.parametrize(
    ("state", "answer", "wanted"),
    [
        ("greeting", "220-a\r\n554 b", "elsewhere"),
        ("greeting", "554-a\r\n220 b", "elsewhere"),
        ("EHLO", "250-a\r\n550 b", "elsewhere"),
        ("MAIL", "250-a\r\n550 b", "delivered"),
        ("MAIL", "550-a\r\n250 b", "failed"),
        ("RCPT", "250-a\r\n550 b", "delivered"),
        ("RCPT", "550-a\r\n250 b", "failed"),
        ("RCPT", "450-a\r\n250-b\r\n550 c", "deferred"),
        ("DATA", "354-a\r\n554 b", "delivered"),
        ("DATA", "554-a\r\n354 b", "failed"),
        (".", "250-a\r\n550 b", "deferred"),
        (".", "250-a\r\n250-b\r\n450 c", "deferred"),
        (".", "550-a\r\n250 b", "deferred"),
        (".", "450-a\r\n250 b", "deferred"),
    ],
)
async def test_a_reply_whose_lines_differ_never_ends_a_message(state, answer, wanted):
    """In a dialogue the first line counts, as under qmail; at its end neither "taken" nor "refused" does."""
    async with ScriptedHost({state: answer}) as host:
        assert await fate(host) == wanted


@pytest.mark.parametrize("state", [*STATES, "QUIT"])
async def test_a_reply_of_100_megabytes_at_each_state(state, certificate):
    sent = 0

    async def flood(writer):
        nonlocal sent
        for _ in range(1600):
            writer.write(b"550-" + b"x" * 65530 + b"\r\n")
            await writer.drain()
            sent += 65536

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    terms = Terms(unverified(), required=True) if state == "STARTTLS" else None
    async with ScriptedHost({"EHLO": OFFER, "STARTTLS": "220 go", state: flood}, tls=certificate) as host:
        assert await fate(host, terms=terms) == STATES.get(state, "delivered")
    assert sent < 20_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90 * 1024


@pytest.mark.parametrize("early", ["250 2.0.0 taken", "250 a\r\n250 b", "354 go\r\n250 2.0.0 taken"])
@pytest.mark.parametrize("state", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("ehlo", ["250 host.example", OFFER])
async def test_an_early_250_takes_no_message(state, early, ehlo):
    """A host that answers ahead of the commands must not be believed to have taken what it never heard."""
    usual = {"DATA": "354 go on"}.get(state, "250 ok")
    async with ScriptedHost({"EHLO": ehlo, state: f"{usual}\r\n{early}", ".": None}) as host:
        assert await fate(host) in ("deferred", "elsewhere")


async def test_a_250_in_the_midst_of_the_content_takes_nothing(tmp_path):
    (tmp_path / "body").write_bytes(b"line\n" * 2_000_000)
    big = Message(b"Subject: big\n", FileBody(tmp_path / "body", 10_000_000))

    async def early(writer):
        writer.write(b"354 go on\r\n250 2.0.0 taken\r\n")
        await writer.drain()

    async with ScriptedHost({"DATA": early}) as host:
        assert await fate(host, message=big) == "deferred"
    assert b"".join(host.contents).endswith(b".\r\n") is False


async def test_one_lmtp_reply_too_few_leaves_the_rest_waiting():
    script = {"LHLO": "250 host.example", ".": [send(b"250 2.0.0 taken\r\n")]}
    async with ScriptedHost(script) as host:
        verdicts = await offer(host.port, lmtp=True)
    assert [verdict.result for verdict in verdicts] == ["delivered", "deferred"]
    assert "twice" in verdicts[1].text


# STARTTLS reply injection (RFC 3207 section 5; CVE-2011-0411 and its kin), with us as the client.

INJECTED = {
    "a reply": b"250 fake\r\n",
    "an EHLO reply": b"250-host.example\r\n250 EVIL\r\n",
    "an EHLO reply and more": b"250-host.example\r\n250 EVIL\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n",
    "the begin of an EHLO reply": b"250-EVIL\r\n250-",
    "the begin of a line": b"2",
    "a digit and a half": b"25",
    "no CRLF": b"250 EVIL",
    "LF alone": b"\n",
    "CRLF": b"\r\n",
    "CR": b"\r",
    "NUL": b"\0",
    "a blank": b" ",
    "another 220": b"220 go\r\n",
    "a login's end": b"235 2.7.0 welcome\r\n",
    "a refusal": b"554 no\r\n",
    "a closing": b"421 bye\r\n",
    "what begins like TLS": b"\x16\x03\x03",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x01\x00",
    "no SMTP": b"\xff\xfe\xfd",
    "a command": b"EHLO me.example\r\n",
    "a final dot": b".\r\n",
    "much": b"250-EVIL\r\n" * 200,
}


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("case", INJECTED)
async def test_what_comes_with_the_reply_to_starttls_is_never_read_as_if_under_tls(
    case, required, certificate
):
    async def inject(writer):
        writer.write(b"220 go\r\n" + INJECTED[case])
        await writer.drain()

    script = {"EHLO": [OFFER, "250 host.example"], "STARTTLS": inject}
    async with ScriptedHost(script, tls=certificate) as host:
        with pytest.raises(DialogueError):
            await offer(host.port, terms=Terms(unverified(), required=required))
    assert host.commands == ["EHLO me.example", "STARTTLS"]


@pytest.mark.parametrize("case", ["a reply", "an EHLO reply", "the begin of an EHLO reply", "a TLS alert"])
async def test_nor_what_comes_a_moment_later(case, certificate):
    """In a packet of its own it goes to TLS, which refuses it."""

    async def inject(writer):
        writer.write(b"220 go\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(INJECTED[case])
        await writer.drain()

    script = {"EHLO": [OFFER, "250 host.example"], "STARTTLS": inject}
    async with ScriptedHost(script, tls=certificate) as host:
        with pytest.raises(TlsFailed):
            await offer(host.port, terms=Terms(unverified(), required=True))
    assert host.commands == ["EHLO me.example", "STARTTLS"]


@pytest.mark.parametrize("extra", ["220 go", "220 go\r\n250 EVIL", "250 EVIL"])
async def test_an_answer_to_starttls_before_it_was_said(extra, certificate):
    async with ScriptedHost({"EHLO": f"{OFFER}\r\n{extra}"}, tls=certificate) as host:
        with pytest.raises(DialogueError, match="out of turn"):
            await offer(host.port, terms=Terms(unverified(), required=True))


async def test_what_was_offered_in_plain_is_forgotten_under_tls(certificate):
    plain = "250-host.example\r\n250-STARTTLS\r\n250-SIZE 1\r\n250-AUTH PLAIN\r\n250 PIPELINING"
    script = {"EHLO": [plain, "250 host.example"] * 2, "STARTTLS": "220 go"}
    async with ScriptedHost(script, tls=certificate) as host:
        assert await fate(host, terms=Terms(unverified(), required=True)) == "delivered"
        with pytest.raises(DialogueError, match="no way to log in"):
            await offer(host.port, terms=Terms(unverified(), required=True), login=Login("me", "secret"))
    assert not any("SIZE" in line or "AUTH" in line for line in host.commands)


# What leaves on the wire.


class Recorder(ScriptedHost):
    """Keeps every byte that came."""

    def __init__(self, script=None):
        super().__init__(script)
        self.raw = b""

    async def _serve(self, reader, writer):
        feed = reader.feed_data

        def keep(data):
            self.raw += data
            feed(data)

        # What came before this task began lies in the buffer.
        self.raw += bytes(reader._buffer)
        reader.feed_data = keep
        await super()._serve(reader, writer)


HARD = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\0", b"\r.\r", b"\n.\n", b"\r\n.\r\n", b"\rQUIT\r"]
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=HARD, on_disk=st.booleans())
def test_no_bare_cr_or_lf_leaves_and_no_content_ends_itself(body, on_disk, tmp_path):
    async def dialogue():
        stored = body
        if on_disk:
            (tmp_path / "body").write_bytes(b"\n" + body)
            stored = FileBody(tmp_path / "body", len(body) + 1)
        async with Recorder() as host:
            message = Message(b"Subject: t\n", stored) if on_disk else Message(b"Subject: t\n", b"\n" + body)
            verdicts = await offer(host.port, message=message)
        assert [verdict.result for verdict in verdicts] == ["delivered"] * 2
        return host

    host = asyncio.run(dialogue())
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", host.raw) is None
    # One message, one end: no line of the content was read as a command.
    assert [line.split(" ")[0] for line in host.commands] == ["EHLO", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]
    content = host.contents[0]
    assert b"\r\n.\r\n" not in b"\r\n" + content
    assert all(line.startswith(b"..") for line in content.split(b"\r\n") if line.startswith(b"."))


@pytest.mark.parametrize("value", ["HDRS\r\nRSET", "a b", "", "x" * 501, "é", "\x7f", "=a"])
async def test_no_parameter_ends_its_line(value):
    async with Recorder({"EHLO": "250-x\r\n250 DSN"}) as host:
        connection = await Connection.connect(Target("x", "127.0.0.1", host.port), "me.example", PATIENCE)
        envelope = Envelope(
            Address("s@me.example"),
            [Address("u@x.example")],
            1,
            params={"RET": value, "ENVID": value},
            rcpt_params=[{"NOTIFY": value, "ORCPT": value}],
        )
        await connection.send(envelope, MESSAGE)
        connection.quit()
    assert host.commands[1:4] == ["MAIL FROM:<s@me.example>", "RCPT TO:<u@x.example>", "DATA"]
