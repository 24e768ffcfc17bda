"""The SMTP client against hosts that answer by a script, and its pure parts byte by byte."""

import asyncio
import datetime as dt
import itertools
import os
import shutil
import ssl
import tempfile
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.address import Address
from gateway.errors import DialogueError, TlsFailed
from gateway.message import FileBody, Message
from gateway.queue.guarded import Guarded
from gateway.smtp import Connection, Envelope, Target, Terms, Timeouts, unverified
from gateway.smtp.wire import UNREAD, ReplyReader, encode_content
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
PATIENCE = Timeouts(connect=5, command=5, final=5)
MAY = Terms(unverified())
MUST = Terms(unverified(), required=True)
EXTENDED = (
    "250-host.example\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 STARTTLS"
)


def envelope(*recipients, sender="s@me.example", **more):
    addresses = [Address(recipient) for recipient in recipients or ("u@x.example",)]
    return Envelope(Address(sender), addresses, **{"size": MESSAGE.size, **more})


async def connect(host, *, timeouts=PATIENCE, tls=None):
    return await connect_to(host.port, timeouts=timeouts, tls=tls)


async def connect_to(port, *, timeouts=PATIENCE, tls=None):
    return await Connection.connect(Target("host.example", "127.0.0.1", port), "me.example", timeouts, tls)


async def offer(host, *recipients, message=MESSAGE, tls=None, **more):
    connection = await connect(host, tls=tls)
    try:
        return await connection.send(envelope(*recipients, **more), message)
    finally:
        connection.quit()


def results(verdicts):
    return [(verdict.result, verdict.status) for verdict in verdicts]


# Replies


def read(*pieces):
    reader = ReplyReader()
    for piece in pieces:
        reader.feed(piece)
    return reader


def test_a_reply_of_many_lines_is_one_however_it_is_split():
    raw = b"250-one\r\n250-\r\n250 three\r\n354 go\r\n"
    for cut in range(len(raw)):
        reader = read(raw[:cut], raw[cut:])
        assert (reader.next().lines, reader.next().code) == (("one", "", "three"), 354)
        assert reader.empty


@pytest.mark.parametrize("raw", [b"250\r\n", b"250 \r\n", b"250\n", b"250 a\rb\r\n", b"250 \x90\r\n"])
def test_odd_replies_that_hosts_do_send(raw):
    assert read(raw).next().code == 250


@pytest.mark.parametrize(
    "raw",
    [b"\r\n", b"25\r\n", b"abc\r\n", b"2500 x\r\n", b"150 x\r\n", b"250-a\r\nb\r\n"],
)
def test_what_is_no_smtp_is_a_temporary_fault(raw):
    with pytest.raises(DialogueError) as caught:
        read(raw)
    assert caught.value.status.startswith("4")


@pytest.mark.parametrize("piece", [b"x" * 1000, b"250-" + b"x" * 996 + b"\n"])
def test_a_reply_without_end_is_cut_off(piece):
    with pytest.raises(DialogueError, match="too long"):
        read(*[piece] * (UNREAD // 1000 + 2))


def test_replies_that_are_taken_make_room():
    reader = ReplyReader()
    for _ in range(300):
        reader.feed(b"250 " + b"x" * 1000 + b"\r\n")
        assert reader.next().code == 250


def test_a_reply_cannot_bring_control_characters_along():
    assert read(b"550 a\x1b[2Jb\x00\x7f\r\n").next().lines == ("a [2Jb",)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("550 5.1.1 no", "5.1.1"),
        ("550 no", "5.0.0"),
        ("450 5.1.1 no", "4.0.0"),
        ("600 no", "5.0.0"),
        ("250 2.1.5", "2.1.5"),
    ],
)
def test_the_status_of_a_reply_fits_its_code(raw, status):
    assert read(raw.encode() + b"\r\n").next().status == status


# Content


def encoded(raw, *cuts):
    edges = [0, *cuts, len(raw)]
    return b"".join(encode_content(iter([raw[a:b] for a, b in itertools.pairwise(edges)])))


@pytest.mark.parametrize(
    ("raw", "wire"),
    [
        (b"", b".\r\n"),
        (b"a\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".\n..\n.a\nb.\n", b"..\r\n...\r\n..a\r\nb.\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n.\r\n"),
        (b"a\rb\n", b"a\r\nb\r\n.\r\n"),
        (b"a\r", b"a\r\n.\r\n"),
        (b"a\r\r\nb\n", b"a\r\n\r\nb\r\n.\r\n"),
        (b"a\0b\n", b"a\0b\r\n.\r\n"),
        (b"\n\n\n", b"\r\n\r\n\r\n.\r\n"),
        (b"a\r.\nMAIL FROM:<x>\n", b"a\r\n..\r\nMAIL FROM:<x>\r\n.\r\n"),
        (b"a\r.\rMAIL\r", b"a\r\n..\r\nMAIL\r\n.\r\n"),
        (b"a\r\n.\r\nMAIL\r\n", b"a\r\n..\r\nMAIL\r\n.\r\n"),
    ],
)
def test_content_on_the_wire_at_every_split(raw, wire):
    for first in range(len(raw) + 1):
        for second in range(first, len(raw) + 1):
            assert encoded(raw, first, second) == wire


@settings(deadline=None)
@given(st.lists(st.text("a.\r\n", max_size=6).map(str.encode), max_size=6))
def test_no_content_ends_itself(chunks):
    wire = b"".join(encode_content(iter(chunks)))
    body = wire.removesuffix(b".\r\n")
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    lines = body.split(b"\r\n")
    assert lines.pop() == b""
    assert not any(b"\r" in line or b"\n" in line or line == b"." for line in lines)


# The table of dialogue.py


@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL"])
@pytest.mark.parametrize("answer", [None, "421 4.3.2 closing", "25", "", "abc"])
async def test_before_mail_is_taken_any_fault_leads_elsewhere(step, answer):
    async with ScriptedHost({step: answer}) as host:
        with pytest.raises(DialogueError) as caught:
            await offer(host)
    assert caught.value.status.startswith("4")


@pytest.mark.parametrize("answer", ["250 hi", "450 later", "500 no", "550 no", "554 5.7.1 no", "600 no"])
async def test_a_host_that_greets_badly_leads_elsewhere(answer):
    async with ScriptedHost({"greeting": answer}) as host:
        with pytest.raises(DialogueError) as caught:
            await offer(host)
    assert caught.value.reply == answer
    assert caught.value.status.startswith("4")


@pytest.mark.parametrize("code", [500, 502, 550])
async def test_a_host_without_ehlo_is_asked_with_helo(code):
    async with ScriptedHost({"EHLO": f"{code} what"}) as host:
        assert results(await offer(host)) == [("delivered", "2.0.0")]
    assert host.commands[:3] == ["EHLO me.example", "HELO me.example", "MAIL FROM:<s@me.example>"]


@pytest.mark.parametrize(
    ("step", "answer", "result", "status"),
    [
        ("MAIL", "450 4.7.1 later", "deferred", "4.7.1"),
        ("MAIL", "550 5.7.1 no", "failed", "5.7.1"),
        ("MAIL", "354 odd", "delivered", "2.0.0"),
        ("RCPT", "421 4.3.2 closing", "deferred", "4.3.2"),
        ("RCPT", "450 later", "deferred", "4.0.0"),
        ("RCPT", "550 5.1.1 who", "failed", "5.1.1"),
        ("RCPT", "600 no", "failed", "5.0.0"),
        ("RCPT", "251 2.1.5 moved", "delivered", "2.0.0"),
        ("RCPT", "abc", "deferred", "4.5.0"),
        # Each line has the same code (RFC 5321 section 4.2.1), so the first may be taken.
        ("RCPT", "250-a\r\n550 b", "delivered", "2.0.0"),
        ("RCPT", "550-a\r\n250 b", "failed", "5.0.0"),
        ("RCPT", None, "deferred", "4.4.2"),
        ("DATA", "250 odd", "deferred", "4.5.0"),
        ("DATA", "450 4.3.0 later", "deferred", "4.3.0"),
        ("DATA", "554 5.5.1 no", "failed", "5.5.1"),
        ("DATA", "", "deferred", "4.5.0"),
        ("DATA", None, "deferred", "4.4.2"),
        (".", "354 odd", "deferred", "4.5.0"),
        (".", "452 4.3.1 full", "deferred", "4.3.1"),
        (".", "552 5.3.4 big", "failed", "5.3.4"),
        (".", "abc", "deferred", "4.5.0"),
        (".", None, "deferred", "4.4.2"),
        ("QUIT", None, "delivered", "2.0.0"),
    ],
)
@pytest.mark.parametrize("ehlo", ["250 host.example", "250-host.example\r\n250 PIPELINING"])
async def test_what_each_answer_makes(step, answer, result, status, ehlo):
    async with ScriptedHost({"EHLO": ehlo, step: answer}) as host:
        [verdict] = await asyncio.wait_for(offer(host), 10)
    assert (verdict.result, verdict.status) == (result, status)


async def test_only_a_loss_behind_the_final_dot_may_have_delivered():
    async with ScriptedHost({".": None}) as host:
        assert "twice" in (await offer(host))[0].text
    async with ScriptedHost({"DATA": None}) as host:
        assert "twice" not in (await offer(host))[0].text


@pytest.mark.parametrize("ehlo", ["250 host.example", "250-host.example\r\n250 PIPELINING"])
async def test_each_recipient_has_its_own_verdict(ehlo):
    async with ScriptedHost({"EHLO": ehlo, "RCPT": ["250 a", "450 4.2.0 b", "550 5.1.1 c"]}) as host:
        verdicts = await offer(host, "a@x.example", "b@x.example", "c@x.example")
    assert results(verdicts) == [("delivered", "2.0.0"), ("deferred", "4.2.0"), ("failed", "5.1.1")]
    assert host.contents == [b"Subject: t\r\n\r\nbody\r\n"]


async def test_the_final_answer_counts_for_the_recipients_that_were_taken_only():
    async with ScriptedHost({"RCPT": ["250 a", "550 5.1.1 b"], ".": "452 4.3.1 full"}) as host:
        assert results(await offer(host, "a@x.example", "b@x.example")) == [
            ("deferred", "4.3.1"),
            ("failed", "5.1.1"),
        ]


async def test_a_loss_after_some_recipients_leaves_what_was_said():
    async with ScriptedHost({"RCPT": ["550 5.1.1 a", None]}) as host:
        assert results(await offer(host, "a@x.example", "b@x.example")) == [
            ("failed", "5.1.1"),
            ("deferred", "4.4.2"),
        ]


async def test_without_a_recipient_no_content_is_sent():
    async with ScriptedHost({"RCPT": "550 5.1.1 no"}) as host:
        await offer(host)
    assert "DATA" not in host.commands


async def test_content_that_a_host_wants_for_nobody_is_not_sent():
    async with ScriptedHost({"EHLO": EXTENDED, "RCPT": "550 5.1.1 no"}) as host:
        connection = await connect(host)
        assert results(await connection.send(envelope(), MESSAGE)) == [("failed", "5.1.1")]
        assert not connection.reusable
        connection.quit()
        await host.ended.wait()
    assert host.contents in ([], [b""])


async def test_a_host_that_falls_silent_is_left():
    async def say_nothing(_writer):
        await asyncio.sleep(30)

    hasty = Timeouts(connect=1, command=0.05, final=0.05)
    async with ScriptedHost({"greeting": say_nothing}) as host:
        with pytest.raises(DialogueError, match="in time"):
            await connect(host, timeouts=hasty)
    async with ScriptedHost({"RCPT": say_nothing}) as host:
        connection = await connect(host, timeouts=hasty)
        assert results(await connection.send(envelope(), MESSAGE)) == [("deferred", "4.4.2")]


async def test_a_closed_port_is_no_connection(unused_tcp_port):
    with pytest.raises(DialogueError) as caught:
        await Connection.connect(Target("x", "127.0.0.1", unused_tcp_port), "me", PATIENCE, None)
    assert caught.value.status == "4.4.1"


async def test_a_reply_of_100_megabytes_is_cut_off():
    sent = 0

    async def flood(writer):
        nonlocal sent
        for _ in range(1600):
            writer.write(b"550-" + b"x" * 65530 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with ScriptedHost({"RCPT": flood}) as host:
        assert results(await offer(host)) == [("deferred", "4.5.0")]
    assert sent < 20_000_000


@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "RCPT"])
async def test_a_reply_too_many_is_never_taken_for_the_next_one(step):
    usual = {"greeting": "220 hi"}.get(step, "250 ok")
    async with ScriptedHost(
        {step: f"{usual}\r\n250 early\r\n354 earlier\r\n250 earliest", "DATA": "554 5.0.0 no"}
    ) as host:
        try:
            result = (await offer(host))[0].result
        except DialogueError:
            result = "deferred"
    assert result == "deferred"
    assert host.contents == []


async def test_a_refusal_is_not_pinned_on_the_wrong_command():
    async with ScriptedHost({"MAIL": "250 ok\r\n250 early", "RCPT": "550 5.1.1 no"}) as host:
        [verdict] = await offer(host)
    assert (verdict.result, verdict.text) == ("deferred", "it spoke out of turn")


# Extensions


async def test_nothing_is_used_that_was_not_offered():
    async with ScriptedHost() as host:
        await offer(host, size=10**9, eight_bit=True)
    assert host.commands == [
        "EHLO me.example",
        "MAIL FROM:<s@me.example>",
        "RCPT TO:<u@x.example>",
        "DATA",
        "QUIT",
    ]


async def test_what_is_offered_is_used():
    async with ScriptedHost({"EHLO": EXTENDED}) as host:
        await offer(host, "ü@x.example", eight_bit=True)
    assert host.commands[1] == "MAIL FROM:<s@me.example> SIZE=17 BODY=8BITMIME SMTPUTF8"


async def test_with_pipelining_all_commands_come_before_the_first_reply():
    ahead = asyncio.Event()

    async def wait(writer):
        # The bytes of DATA lie in this host's buffer before MAIL is answered, or never come.
        reader = writer._protocol._stream_reader
        while b"DATA\r\n" not in reader._buffer:  # noqa: ASYNC110 - bytes that come set no event
            await asyncio.sleep(0.001)
        ahead.set()
        writer.write(b"250 ok\r\n")

    async with ScriptedHost({"EHLO": "250-x\r\n250 PIPELINING", "MAIL": wait}) as host:
        assert results(await offer(host, "a@x.example", "b@x.example")) == [("delivered", "2.0.0")] * 2
    assert ahead.is_set()


async def test_a_message_over_the_size_that_a_host_takes_is_not_offered():
    async with ScriptedHost({"EHLO": EXTENDED}) as host:
        assert results(await offer(host, size=1001)) == [("failed", "5.3.4")]
    assert "MAIL" not in " ".join(host.commands)


@pytest.mark.parametrize(
    ("recipient", "status", "wire"),
    [
        ("ü@x.example", "5.6.7", None),
        ("u@bücher.example", "2.0.0", "RCPT TO:<u@xn--bcher-kva.example>"),
        ("a b@x.example", "2.0.0", 'RCPT TO:<"a b"@x.example>'),
        ("a@b@x.example", "2.0.0", 'RCPT TO:<"a@b"@x.example>'),
        ("u@[192.0.2.1]", "2.0.0", "RCPT TO:<u@[192.0.2.1]>"),
        ("u\r\nRSET@x.example", "5.1.3", None),
        ("u@x.example\nRSET", "5.1.3", None),
        ("u\udcff@x.example", "5.6.7", None),
    ],
)
async def test_addresses_on_the_wire(recipient, status, wire):
    async with ScriptedHost() as host:
        verdicts = await offer(host, recipient, "ok@x.example")
    assert [verdict.status for verdict in verdicts] == [status, "2.0.0"]
    assert [line for line in host.commands if line.startswith("RCPT")] == [
        *([wire] if wire else []),
        "RCPT TO:<ok@x.example>",
    ]
    assert not any("RSET" in line for line in host.commands)


async def test_a_sender_that_needs_smtputf8_fails_for_all():
    async with ScriptedHost() as host:
        assert (
            results(await offer(host, "a@x.example", "b@x.example", sender="é@me.example"))
            == [("failed", "5.6.7")] * 2
        )


async def test_a_big_body_is_streamed_from_its_file(tmp_path):
    body = b"\n" + b".line of text\n" * 400_000
    (tmp_path / "body").write_bytes(body)
    message = Message(b"Subject: big\n", FileBody(tmp_path / "body", len(body)))
    async with ScriptedHost() as host:
        assert results(await offer(host, message=message)) == [("delivered", "2.0.0")]
    assert host.contents == [b"Subject: big\r\n\r\n" + b"..line of text\r\n" * 400_000]


async def test_a_body_that_cannot_be_read_never_ends_with_a_dot(tmp_path):
    message = Message(b"Subject: gone\n", FileBody(tmp_path / "gone", 10))
    async with ScriptedHost() as host:
        assert results(await offer(host, message=message)) == [("deferred", "4.3.0")]
        await host.ended.wait()
    assert "." not in host.commands


async def test_a_small_message_that_another_node_has_taken_over_is_deferred():
    fenced = Guarded(MESSAGE, lambda: False)
    async with ScriptedHost() as host:
        assert results(await offer(host, message=fenced)) == [("deferred", "4.3.0")]
        await host.ended.wait()
    assert "." not in host.commands


# One connection, many messages


async def test_a_connection_carries_several_messages():
    async with ScriptedHost({"RCPT": ["250 a", "550 b", "250 c"]}) as host:
        connection = await connect(host)
        for _ in range(3):
            await connection.send(envelope(), MESSAGE)
            assert connection.reusable
        connection.quit()
    assert host.connections == 1
    # The second message was refused, so the third begins with RSET.
    assert [line[:4] for line in host.commands] == [
        "EHLO",
        "MAIL",
        "RCPT",
        "DATA",
        "MAIL",
        "RCPT",
        "RSET",
        "MAIL",
        "RCPT",
        "DATA",
        "QUIT",
    ]


async def test_a_connection_that_died_while_idle_is_told_before_anything_is_taken():
    async with ScriptedHost({".": "250 2.0.0 ok\r\n421 4.4.2 idle"}) as host:
        connection = await connect(host)
        assert results(await connection.send(envelope(), MESSAGE)) == [("delivered", "2.0.0")]
        with pytest.raises(DialogueError):
            await connection.send(envelope(), MESSAGE)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "host.example")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1)).sign(
        key, hashes.SHA256()
    )
    path = tmp_path_factory.mktemp("tls") / "host.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_tls_is_used_where_it_is_offered_and_ehlo_said_again(certificate):
    script = {"EHLO": [EXTENDED, "250-host.example\r\n250 8BITMIME"], "STARTTLS": "220 go"}
    async with ScriptedHost(script, tls=certificate) as host:
        connection = await connect(host, tls=MAY)
        assert connection.secure
        assert results(await connection.send(envelope(), MESSAGE)) == [("delivered", "2.0.0")]
        connection.quit()
    # What was offered in plain (SIZE) does not count under TLS.
    assert host.commands[:4] == ["EHLO me.example", "STARTTLS", "EHLO me.example", "MAIL FROM:<s@me.example>"]
    assert host.contents == [b"Subject: t\r\n\r\nbody\r\n"]


def test_all_of_it_works_on_uvloop_too(certificate, tmp_path):
    async def dialogues():
        await test_tls_is_used_where_it_is_offered_and_ehlo_said_again(certificate)
        await test_what_comes_behind_the_reply_to_starttls_is_refused(certificate, "250 fake")
        await test_a_handshake_that_fails_ends_the_connection(MUST)
        await test_a_big_body_is_streamed_from_its_file(tmp_path)
        await test_a_reply_of_100_megabytes_is_cut_off()

    uvloop.run(dialogues())


async def test_tls_is_not_used_when_it_is_not_wanted(certificate):
    async with ScriptedHost({"EHLO": EXTENDED}, tls=certificate) as host:
        assert results(await offer(host)) == [("delivered", "2.0.0")]
    assert "STARTTLS" not in host.commands


@pytest.mark.parametrize("injected", ["250 fake", "250-host.example\r\n250 PIPELINING", "2", "\x16"])
async def test_what_comes_behind_the_reply_to_starttls_is_refused(certificate, injected):
    async def inject(writer):
        writer.write(f"220 go\r\n{injected}".encode())

    async with ScriptedHost({"EHLO": EXTENDED, "STARTTLS": inject}, tls=certificate) as host:
        with pytest.raises(DialogueError, match="before TLS"):
            await offer(host, tls=MAY)
    assert host.connections == 1


@pytest.mark.parametrize("answer", ["454 4.7.0 not now", "502 no"])
async def test_a_host_that_takes_back_its_offer_of_tls_is_served_in_plain(answer):
    async with ScriptedHost({"EHLO": EXTENDED, "STARTTLS": answer}) as host:
        assert results(await offer(host, tls=MAY)) == [("delivered", "2.0.0")]
    assert host.connections == 1


@pytest.mark.parametrize("answer", ["454 4.7.0 not now", "502 no", "220-go\r\n250 on"])
@pytest.mark.parametrize("ehlo", [EXTENDED, "250 host.example"])
async def test_where_tls_is_required_nothing_is_sent_in_plain(answer, ehlo):
    async with ScriptedHost({"EHLO": ehlo, "STARTTLS": answer}) as host:
        with pytest.raises(TlsFailed) as caught:
            await offer(host, tls=MUST)
    assert caught.value.kind == "starttls-not-supported"
    assert not any(line.startswith("MAIL") for line in host.commands)


async def garbage(writer):
    writer.write(b"220 go\r\n")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.write(b"this is no TLS at all\r\n")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()


@pytest.mark.parametrize("terms", [MAY, MUST])
async def test_a_handshake_that_fails_ends_the_connection(terms):
    async with ScriptedHost({"EHLO": EXTENDED, "STARTTLS": garbage}) as host:
        with pytest.raises(TlsFailed):
            await offer(host, tls=terms)
    assert host.commands == ["EHLO me.example", "STARTTLS"]


# A real host


@pytest.fixture
async def smtp_sink(unused_tcp_port):
    """Give `await smtp_sink(*options)`: the port of Postfix's sink, and the folder with what it took."""
    program = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin")
    if not program:
        pytest.skip("apt install postfix")
    started = []
    # As root it becomes another user, who has to reach the folder.
    with tempfile.TemporaryDirectory(prefix="sink-") as name:
        os.chmod(name, 0o777)  # noqa: PTH101 - of a name, not to wait for

        async def start(*options):
            user = ("-u", "nobody") if os.geteuid() == 0 else ()
            where = ("-d", f"{name}/mail.", f"127.0.0.1:{unused_tcp_port}", "10")
            started.append(await asyncio.create_subprocess_exec(program, *user, *options, *where))
            for _ in range(250):
                try:
                    (await connect_to(unused_tcp_port)).quit()
                    break
                except DialogueError:
                    await asyncio.sleep(0.02)
            return unused_tcp_port, Path(name)

        yield start
        for process in started:
            process.terminate()
            await process.wait()


@pytest.mark.peer("postfix")
@pytest.mark.parametrize("options", [[], ["-e"], ["-p"]])
async def test_smtp_sink_takes_what_we_send(smtp_sink, options):
    port, folder = await smtp_sink(*options)
    connection = await connect_to(port)
    recipients = [f"u{number}@x.example" for number in range(100)]
    for _ in range(3):
        verdicts = await connection.send(envelope(*recipients), MESSAGE)
        assert [verdict.result for verdict in verdicts] == ["delivered"] * 100
    connection.quit()
    kept = [path.read_bytes() for path in folder.iterdir()]
    assert [b"Subject: t\n\nbody\n" in raw.replace(b"\r\n", b"\n") for raw in kept] == [True] * 3
    assert b"u99@x.example" in kept[0]


@pytest.fixture
def unused_tcp_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
