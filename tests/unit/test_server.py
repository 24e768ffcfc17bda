"""The server's promises that no dialog shows: timers, disconnects, commits, limits, memory."""
# ruff: noqa: ARG001, ARG002, ASYNC110 - a fake takes what the real one takes; `closed` is a plain flag

import asyncio
import errno
import gc
import inspect
import socket
import struct
import tracemalloc
from pathlib import Path

import aiosmtpd.smtp
import pytest
import uvloop

from gateway.decision import Accept, Reject
from gateway.endpoint import BACKLOG
from gateway.envelope import Recipient, Session, Transaction, new_id
from gateway.message import Memory, Spool
from gateway.settings import Limits, Listener, Tls
from gateway.smtp import Server
from gateway.smtp.tls import Certificates

ENVELOPE = b"EHLO c\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
PATIENCE = 10
MX = Listener(protocol="smtp", address="127.0.0.1:25", name="mx")


class FakeReception:
    """Says yes to all, and keeps what it was told."""

    def __init__(self, folder):
        self.folder = folder
        self.stored, self.refusals, self.mails, self.resets, self.ends = [], [], [], [], []
        self.sessions = []
        self.working = asyncio.Event()
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.over = asyncio.Event()
        self.answers = {}

    def open(self, listener, protocol, client, local_ip):
        self.sessions.append(Session(new_id(), listener, protocol, client, local_ip))
        return self.sessions[-1]

    async def connect(self, session):
        return self._say("connect")

    async def helo(self, session, name, *, extended):
        session.helo, session.extended = name, extended
        return self._say("helo")

    async def mail(self, session, sender, params):
        self.mails.append((sender, params))
        return Transaction(new_id(), sender, "smtp", session, params=params), self._say("mail")

    async def rcpt(self, transaction, address, params):
        transaction.recipients.append(Recipient.of(address, params=params))
        return self._say("rcpt")

    async def data(self, transaction):
        return self._say("data")

    def spool(self, transaction):
        return self._say("spool") or Spool(self.folder)

    async def message(self, transaction, message):
        self.working.set()
        await self.may_commit.wait()
        self.stored.append(bytes(message))
        return Accept()

    def refused(self, of, stage, reply, reason):
        self.refusals.append((stage, reply.code, reason))

    def reset(self, transaction):
        self.resets.append(transaction)

    def disconnect(self, session, reason):
        self.ends.append(reason)
        self.over.set()

    def _say(self, stage):
        answer = self.answers.get(stage)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def reception(tmp_path):
    return FakeReception(tmp_path)


@pytest.fixture
async def serve(reception):
    """Give `serve(**limits)`: starts a server and connects; gives it and the client's two streams."""
    servers, clients = [], []

    async def start(**limits):
        loop = asyncio.get_running_loop()
        server = Server(reception, Limits(**limits), "mx.example.org", MX, loop, None, Certificates(Tls()))
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server.address = sock.getsockname()
        servers.append((server, await loop.create_server(server, sock=sock)))
        reader, writer = await asyncio.open_connection(*server.address)
        clients.append(writer)
        return server, reader, writer

    yield start
    for writer in clients:
        writer.transport.abort()
    for server, listening in servers:
        listening.close()
        await server.close_gently()


async def replies(reader, count):
    """Read whole replies; give their codes."""
    codes = []
    async with asyncio.timeout(PATIENCE):
        while len(codes) < count:
            line = await reader.readline()
            if not line:
                break
            if line[3:4] == b" ":
                codes.append(int(line[:3]))
    return codes


async def rest(reader):
    async with asyncio.timeout(PATIENCE):
        return await reader.read()


async def test_client_and_reach_are_known(serve, reception):
    _, reader, writer = await serve()
    await replies(reader, 1)
    session = reception.sessions[0]
    assert (session.client.ip, session.client.port) == writer.get_extra_info("sockname")
    assert (session.local_ip, session.listener, session.protocol) == ("127.0.0.1", "mx", "smtp")


async def test_parameters_are_kept_as_sent(serve, reception):
    _, reader, writer = await serve()
    writer.write(b"EHLO c\r\nMAIL FROM:<a@example.com> size=0100 Body=8bitMIME\r\n")
    assert await replies(reader, 3) == [220, 250, 250]
    assert reception.mails == [("a@example.com", {"SIZE": "0100", "BODY": "8bitMIME"})]


async def test_replies_to_commands_of_one_packet_leave_in_one(serve, monkeypatch):
    _, reader, writer = await serve()
    await replies(reader, 1)
    sent = []
    write = asyncio.StreamWriter.write
    monkeypatch.setattr(
        asyncio.StreamWriter, "write", lambda self, data: (sent.append(data), write(self, data))
    )
    client = writer.get_extra_info("socket").dup()
    client.setblocking(True)
    client.sendall(ENVELOPE)
    assert await replies(reader, 4) == [250, 250, 250, 354]
    assert len(sent) == 1
    client.close()


async def test_a_burst_of_clients_finds_room(reception):
    """A loop that serves at a socket listens again: with its own hundred, more at one time were reset."""
    loop = asyncio.get_running_loop()
    server = Server(reception, Limits(), "mx.example.org", MX, loop, None, Certificates(Tls()))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listening = await server.listen(sock)
        # tcp_info of a socket that listens: tcpi_sacked is how many may wait.
        (room,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 28)
        listening.close()
    assert room >= min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))


async def test_no_class_is_inspected_per_connection(serve, monkeypatch):
    server, reader, _ = await serve()
    await replies(reader, 1)

    def fail(*_):
        pytest.fail("aiosmtpd's slow way was taken")

    monkeypatch.setattr(inspect, "getmembers", fail)
    monkeypatch.setattr(aiosmtpd.smtp.SMTP, "_getaddr", fail)
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(ENVELOPE)
    assert await replies(reader, 5) == [220, 250, 250, 250, 354]
    writer.close()


async def test_a_client_that_leaves_cannot_stop_a_commit(serve, reception):
    _, _, writer = await serve()
    reception.may_commit.clear()
    writer.write(ENVELOPE + b"x\r\n.\r\n")
    await asyncio.wait_for(reception.working.wait(), PATIENCE)
    reset = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()
    async with asyncio.timeout(PATIENCE):
        while not reception.sessions[0].closed:
            await asyncio.sleep(0.01)
    assert reception.ends == []
    reception.may_commit.set()
    await asyncio.wait_for(reception.over.wait(), PATIENCE)
    assert reception.stored == [b"x\n"]
    assert reception.resets == []


def test_a_client_that_left_during_a_command_is_forgotten_by_the_loop_that_gateways_use(tmp_path):
    """A transport of uvloop refuses to write once the client is gone, where asyncio's says nothing."""
    told = []

    async def leaves():
        reception = FakeReception(tmp_path)
        reception.may_commit.clear()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        server = Server(reception, Limits(), "mx.example.org", MX, loop, None, Certificates(Tls()))
        listening = await loop.create_server(server, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.write(ENVELOPE + b"x\r\n.\r\n")
        await asyncio.wait_for(reception.working.wait(), PATIENCE)
        server.abort()
        async with asyncio.timeout(PATIENCE):
            while not reception.sessions[0].closed:
                await asyncio.sleep(0.01)
        reception.may_commit.set()
        await asyncio.wait_for(server.close_gently(), PATIENCE)
        writer.close()
        listening.close()
        assert reception.ends == ["shutdown"]

    uvloop.run(leaves())
    gc.collect()
    assert told == []


async def test_a_client_that_half_closes_gets_its_reply(serve, reception):
    _, reader, writer = await serve()
    reception.may_commit.clear()
    writer.write(ENVELOPE + b"x\r\n.\r\nQUIT\r\n")
    writer.write_eof()
    await asyncio.wait_for(reception.working.wait(), PATIENCE)
    reception.may_commit.set()
    said = await rest(reader)
    assert b"250 2.0.0 queued as " in said
    assert said.endswith(b"221 2.0.0 goodbye\r\n")
    assert reception.stored == [b"x\n"]


async def test_no_timer_stops_a_commit(serve, reception):
    _, reader, writer = await serve(idle=0.05, session=0.1)
    reception.may_commit.clear()
    writer.write(ENVELOPE + b"x\r\n.\r\n")
    await asyncio.wait_for(reception.working.wait(), PATIENCE)
    asyncio.get_running_loop().call_later(0.3, reception.may_commit.set)
    said = await rest(reader)
    assert b"250 2.0.0 queued as " in said
    assert b"421 4.4.2 " in said
    assert reception.stored == [b"x\n"]


async def test_the_timer_is_for_each_read_not_for_the_message(serve, reception):
    _, reader, writer = await serve(idle=0.3)
    writer.write(ENVELOPE)
    await replies(reader, 5)
    for _ in range(10):
        await asyncio.sleep(0.05)
        writer.write(b"one line\r\n")
    writer.write(b".\r\n")
    assert await replies(reader, 1) == [250]
    assert reception.stored == [b"one line\n" * 10]


@pytest.mark.parametrize("said", [b"", b"EHLO c\r\n", b"NOO", ENVELOPE, ENVELOPE + b"half\r\n"], ids=repr)
async def test_a_silent_client_is_sent_away(serve, reception, said):
    _, reader, writer = await serve(idle=0.1)
    writer.write(said)
    assert (await rest(reader)).endswith(b"421 4.4.2 waited too long for the client\r\n")
    await asyncio.wait_for(reception.over.wait(), PATIENCE)
    assert reception.ends == ["timeout"]
    assert reception.stored == []
    assert len(reception.resets) == said.startswith(ENVELOPE)


async def test_a_command_may_not_trickle_in(serve, reception):
    _, reader, writer = await serve(idle=0.3)
    await replies(reader, 1)

    async def trickle():
        while True:
            writer.write(b"N")
            await asyncio.sleep(0.02)

    task = asyncio.create_task(trickle())
    assert (await rest(reader)).endswith(b"421 4.4.2 waited too long for the client\r\n")
    task.cancel()
    assert reception.ends == ["timeout"]


@pytest.mark.parametrize(
    ("verb", "drop"),
    [(b"DATA\r\n", b"x"), (b"BDAT 100000\r\n", b"x"), (b"BDAT 1\r\nx", b"BDAT 1\r\nx")],
    ids=["data", "bdat", "chunks"],
)
async def test_content_may_not_trickle_in(serve, reception, monkeypatch, verb, drop):
    monkeypatch.setattr("gateway.smtp.server.content.PATIENCE", 0.2)
    _, reader, writer = await serve()
    writer.write(ENVELOPE.replace(b"DATA\r\n", verb))

    async def trickle():
        while True:
            writer.write(drop)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(trickle())
    assert (await rest(reader)).endswith(b"421 4.4.2 the content comes too slowly\r\n")
    task.cancel()
    assert ("limit", 421, "data_rate") in reception.refusals
    assert reception.ends == ["limit"]
    assert (reception.stored, len(reception.resets)) == ([], 1)


async def test_who_brings_enough_may_take_long(serve, reception, monkeypatch):
    monkeypatch.setattr("gateway.smtp.server.content.PATIENCE", 0.1)
    _, reader, writer = await serve()
    writer.write(ENVELOPE)
    await replies(reader, 5)
    for _ in range(10):
        await asyncio.sleep(0.03)
        writer.write(b"x" * 998 + b"\r\n")
    writer.write(b".\r\n")
    assert await replies(reader, 1) == [250]


async def test_a_session_has_so_many_commands(serve, reception):
    _, reader, writer = await serve(commands=100)
    writer.write(b"NOOP\r\n" * 200)
    said = (await rest(reader)).splitlines()
    assert (len(said), said[-1]) == (102, b"421 4.7.0 too many commands in one session")
    assert ("limit", 421, "commands") in reception.refusals


async def test_a_session_does_not_last_for_ever(serve, reception):
    _, reader, writer = await serve(session=0.2)

    async def chatter():
        while True:
            writer.write(b"NOOP\r\n")
            await asyncio.sleep(0.02)

    task = asyncio.create_task(chatter())
    assert (await rest(reader)).endswith(b"421 4.4.2 the session lasts too long\r\n")
    task.cancel()
    assert reception.ends == ["timeout"]


async def test_a_client_that_reads_nothing_holds_no_connection(serve, reception):
    _, _, writer = await serve(idle=0.2, commands=10**6)
    writer.transport.pause_reading()
    for _ in range(40):
        writer.write(b"HELP\r\n" * 20_000)
    await asyncio.wait_for(reception.over.wait(), PATIENCE)
    assert reception.ends == ["timeout"]


async def test_a_fault_at_connect_lets_nobody_in(serve, reception):
    reception.answers["connect"] = RuntimeError("password=hunter2")
    _, reader, _ = await serve()
    assert await rest(reader) == b"421 4.3.0 temporary failure, try again later\r\n"
    assert reception.ends == ["error"]


@pytest.mark.parametrize("stage", ["helo", "mail", "rcpt", "data"])
async def test_a_fault_of_ours_is_temporary_and_says_nothing(serve, reception, stage):
    reception.answers[stage] = RuntimeError("password=hunter2")
    _, reader, writer = await serve()
    writer.write(ENVELOPE + b"QUIT\r\n")
    writer.write_eof()
    said = await rest(reader)
    assert b"451 4.3.0 temporary failure, try again later\r\n" in said
    assert b"hunter2" not in said
    assert (stage if stage != "helo" else "ehlo", 451, "internal_error") in reception.refusals


@pytest.mark.parametrize(("number", "reply"), [(errno.ENOSPC, b"452 4.3.1 "), (errno.EIO, b"451 4.3.0 ")])
async def test_a_disk_that_refuses_is_temporary_and_the_session_goes_on(serve, reception, number, reply):
    class FullSpool(Spool):
        def write(self, data):
            raise OSError(number, "disk trouble on /secret/path")

    reception.answers["spool"] = FullSpool(reception.folder)
    _, reader, writer = await serve()
    writer.write(ENVELOPE + b"x\r\n.\r\nNOOP\r\n")
    writer.write_eof()
    said = await rest(reader)
    assert reply in said
    assert b"secret" not in said
    assert said.endswith(b"250 2.0.0 ok\r\n")
    assert reception.stored == []
    assert len(reception.resets) == 1


async def test_no_room_to_begin_with_is_said_before_the_content(serve, reception):
    reception.answers["spool"] = OSError(errno.ENOSPC, "full")
    _, reader, writer = await serve()
    writer.write(ENVELOPE)
    assert await replies(reader, 5) == [220, 250, 250, 250, 452]


async def test_no_memory_for_a_header_is_temporary_and_told(serve, reception):
    reception.answers["spool"] = Spool(reception.folder, memory=Memory(lambda: 5))
    _, reader, writer = await serve()
    writer.write(ENVELOPE + b"Subject: long\r\n.\r\nNOOP\r\n")
    writer.write_eof()
    said = await rest(reader)
    assert b"452 4.3.1 no room for the message now, try again later\r\n" in said
    assert said.endswith(b"250 2.0.0 ok\r\n")
    assert reception.refusals == [("limit", 452, "memory"), ("message", 452, "memory")]
    assert reception.stored == []


async def test_a_message_over_the_limit_is_read_in_bounded_memory(serve, reception):
    _, reader, writer = await serve(message_size=1000)
    writer.write(ENVELOPE)
    await replies(reader, 5)
    block = (b"x" * 998 + b"\r\n") * 64
    tracemalloc.start()
    for _ in range(160):
        writer.write(block)
        await writer.drain()
    writer.write(b".\r\n")
    assert await replies(reader, 1) == [552]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 1024**2, "of ten megabytes"
    assert ("message", 552, "message_size") in reception.refusals
    assert list(reception.folder.iterdir()) == []


async def test_a_large_message_is_not_whole_in_memory(serve, reception, monkeypatch):
    async def message(transaction, message):
        reception.stored.append(message.size)
        return Accept()

    monkeypatch.setattr(reception, "message", message)
    _, reader, writer = await serve()
    writer.write(ENVELOPE)
    await replies(reader, 5)
    writer.write(b"Subject: big\r\n\r\n")
    block = (b"x" * 998 + b"\r\n") * 64
    tracemalloc.start()
    for _ in range(160):
        writer.write(block)
        await writer.drain()
    writer.write(b".\r\n")
    assert await replies(reader, 1) == [250]
    assert tracemalloc.get_traced_memory()[1] < 3 * 1024**2
    tracemalloc.stop()
    assert reception.stored == [14 + 160 * 64 * 999]


async def test_refusals_of_the_server_itself_are_told(serve, reception):
    _, reader, writer = await serve(bad_commands=2, recipients=1)
    writer.write(
        b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nFOO\r\nNOOP\nVRFY\r\nNOOP\r\n"
    )
    said = await rest(reader)
    assert said.endswith(b"421 4.7.0 too many errors\r\n")
    assert reception.refusals == [
        ("limit", 452, "recipients"),
        ("command", 500, "unknown_command"),
        ("command", 500, "malformed_line"),
        ("vrfy", 501, "syntax"),
        ("limit", 421, "bad_commands"),
    ]
    assert reception.ends == ["limit"]
    assert len(reception.resets) == 1


async def test_a_refused_client_hears_it_and_is_gone(serve, reception):
    reception.answers["connect"] = Reject("5.7.1", "not you")
    _, reader, _ = await serve()
    assert await rest(reader) == b"554 5.7.1 not you\r\n"
    assert reception.ends == ["disconnected"]


async def test_a_clients_own_size_limit_counts(serve, reception):
    _, reader, writer = await serve(message_size=1000)
    await replies(reader, 1)
    reception.sessions[0].message_size = 5000
    writer.write(
        b"EHLO c\r\nMAIL FROM:<a@b> SIZE=4000\r\nRCPT TO:<c@d>\r\nDATA\r\n" + b"x" * 4000 + b"\r\n.\r\n"
    )
    assert await replies(reader, 5) == [250, 250, 250, 354, 250]


async def test_a_gentle_end_lets_a_commit_finish_and_tells_the_idle(serve, reception):
    server, reader, writer = await serve()
    reception.may_commit.clear()
    writer.write(ENVELOPE + b"x\r\n.\r\nNOOP\r\n")
    await asyncio.wait_for(reception.working.wait(), PATIENCE)
    idle, _ = await asyncio.open_connection(*server.address)
    await replies(idle, 1)
    closing = asyncio.create_task(server.close_gently())
    assert await rest(idle) == b"421 4.3.2 shutting down, try again later\r\n"
    late, _ = await asyncio.open_connection(*server.address)
    assert (await rest(late)).endswith(b"421 4.3.2 shutting down, try again later\r\n")
    assert not closing.done()
    reception.may_commit.set()
    said = await rest(reader)
    await asyncio.wait_for(closing, PATIENCE)
    assert b"250 2.0.0 queued as " in said
    assert said.endswith(b"421 4.3.2 shutting down, try again later\r\n")
    assert reception.stored == [b"x\n"]


async def test_a_gentle_end_lets_a_message_come_in_whole(serve, reception):
    server, reader, writer = await serve()
    writer.write(ENVELOPE)
    await replies(reader, 5)
    closing = asyncio.create_task(server.close_gently())
    await asyncio.sleep(0)
    writer.write(b"x\r\n.\r\n")
    assert await replies(reader, 2) == [250, 421]
    await asyncio.wait_for(closing, PATIENCE)
    assert reception.stored == [b"x\n"]
