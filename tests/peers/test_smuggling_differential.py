"""The same streams to this gateway and to Postfix, Exim and OpenSMTPD: all that it takes, each of them takes.

A stream is made of messages with what might be taken for the end of one, and behind that commands that would
send another. Which messages a strict server takes, is known: those without a bare CR, a bare LF or a NUL.
OpenSMTPD ends sessions that do not wait for its replies: it gets each message in one of its own, by steps.
Postfix also takes false ends, finds a field of a header or a BDAT without a size among what it then takes for
commands, and cuts the client off: of such a stream it has to have taken what is valid before that false end.
"""

import os
import random
import re
import socket
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest
from peer import folder_of
from receivers import Exim, OpenSmtpd, Postfix

pytestmark = [pytest.mark.peer(package) for package in ("postfix", "exim4-daemon-light", "opensmtpd")]

MANY, FEW = 2000, 20
LENIENT = "limits: {bad_commands: 10000, commands: 10000}\n"
#: What false ends are made of.
MARKS = [b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\n.", b"\0", b"\x85", b" "]
LINES = [b"a line", b"..", b"..two", b"", b"From x", b"NOOP", b"RSET", b"Received: x", b"=2E", b"\xc3\xa9"]
HELLO = b"EHLO client.example\r\n"
UNCLEAN = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


@dataclass
class Stream:
    """What a client says: packets, and the senders of the messages that it means to send and may send."""

    packets: list[bytes]
    #: The same by message, as steps that wait for a reply.
    turns: list[list[bytes]]
    valid: list[str]
    chunking: bool


class Author:
    """Writes one stream, always the same one for a number."""

    def __init__(self, number):
        self.number, self.chance = number, random.Random(number)
        self.chunking = number % 3 == 0
        self._senders = 0

    def stream(self):
        said, turns, valid = HELLO, [], []
        for _ in range(self.chance.randrange(1, 4)):
            sender, content = self._sender(), self._content()
            # Nothing but the real end may end it.
            content = re.sub(rb"\r\n\.(?=\r\n)", b"\r\n..", b"\r\n" + content + b"\r\n")[2:-2]
            by_chunks = self.chunking and self.chance.random() < 0.7
            envelope = self._envelope(sender)
            said += envelope + (self._chunks if by_chunks else self._data)(content)
            turns.append([HELLO, *envelope.splitlines(keepends=True), b"DATA\r\n", content + b"\r\n.\r\n"])
            valid += [] if UNCLEAN.search(content + b"\r\n") else [sender]
        # Whoever is still within a message now is brought out of it.
        return Stream(self._cut(said + b"\r\n.\r\nQUIT\r\n"), turns, valid, self.chunking)

    def _sender(self):
        self._senders += 1
        return f"s{self.number}-{self._senders}@sender.example"

    def _envelope(self, sender):
        return f"MAIL FROM:<{sender}>\r\nRCPT TO:<u@example.org>\r\n".encode()

    def _data(self, content):
        return b"DATA\r\n" + content + b"\r\n.\r\n"

    def _chunks(self, content):
        """Cut it into chunks; none is empty, which Exim refuses."""
        content += b"\r\n"
        places = sorted(self.chance.sample(range(1, len(content)), min(2, len(content) - 1)))
        pieces = [content[i:j] for i, j in zip([0, *places], [*places, len(content)], strict=True)]
        said = [b"BDAT %d\r\n" % len(piece) + piece for piece in pieces[:-1]]
        return b"".join(said) + b"BDAT %d LAST\r\n" % len(pieces[-1]) + pieces[-1]

    def _content(self):
        # A header, or none and its end: OpenSMTPD refuses what begins like neither.
        content = self.chance.choice([b"Subject: x\r\n\r\n", b"\r\n"]) + self._lines()
        if self.chance.random() < 0.5:
            content += self._false_end() + self._hidden() + self._lines()
        return content

    def _lines(self):
        return b"".join(self.chance.choice(LINES) + b"\r\n" for _ in range(self.chance.randrange(4)))

    def _false_end(self):
        marks = [self.chance.choice(MARKS) for _ in range(self.chance.randrange(1, 4))]
        return (
            b"x" + b"".join(marks) + self.chance.choice([b".\r\n", b".\n", b".\r", b"\r\n", b"\n", b"BDAT 0"])
        )

    def _hidden(self):
        """Commands that send another message, if somebody takes them for commands."""
        end = self.chance.choice([b"\n", b"\r\n"])
        said = self._envelope(self._sender()) + b"DATA\r\nSubject: hidden\r\n\r\nx\r\n"
        return said.replace(b"\r\n", end) + self._false_end()

    def _cut(self, said):
        places = sorted(self.chance.randrange(len(said)) for _ in range(self.chance.randrange(5)))
        return [said[i:j] for i, j in zip([0, *places], [*places, len(said)], strict=True)]


def play(server, stream):
    """Say it all, whatever the replies are; gives the port that it was said from."""
    if not server.pipelining:
        for turn in stream.turns:
            converse(server.port, turn)
        return 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as link, suppress(ConnectionError):
        port = link.getsockname()[1]
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.recv(1000)
        for packet in stream.packets:
            link.sendall(packet)
        while link.recv(65536):
            pass
    return port


def converse(port, steps):
    """Say one message, a step after each reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link, suppress(ConnectionError):
        replies = link.makefile("rb")
        for step in (*steps, b"QUIT\r\n"):
            while replies.readline()[3:4] == b"-":
                pass
            link.sendall(step)
        replies.read()


def by_stream(senders):
    """Sort messages by the number of their stream."""
    found = defaultdict(list)
    for sender in senders:
        found[int(re.match(r"s(\d+)-", sender)[1])].append(sender)
    return found


@pytest.fixture(scope="module")
def servers():
    if os.geteuid():
        pytest.skip("only root can start these servers")
    with ExitStack() as stack:
        folder = folder_of(stack)
        made = [kind(folder / kind.__name__.lower()) for kind in (Postfix, Exim, OpenSmtpd)]
        for server in made:
            stack.callback(server.stop)
            server.start()
        yield made


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_what_it_takes_others_take(servers, gateway, count):
    first = 0 if count == MANY else MANY
    streams = {number: Author(number).stream() for number in range(first, first + count)}
    gateway.pipelining = True
    gateway.configure("50-limits.yaml", LENIENT)
    gateway.mailward("reload")
    ports = {}
    with ThreadPoolExecutor(6) as pool:
        for server in (gateway, *servers):
            said = pool.map(lambda stream, server=server: play(server, stream), streams.values())
            ports[server] = dict(zip(streams, said, strict=True))
    ours = by_stream(event["sender"] for event in gateway.events("@sender.example", "message.accepted"))
    for number, stream in streams.items():
        assert sorted(ours[number]) == sorted(stream.valid), (number, stream.packets)
    sent = sum(len(stream.valid) for stream in streams.values())
    print({"streams": count, "taken here": sent})
    assert sent > count // 2
    for server in servers:
        ended = server.cut_off()
        cut_off = {number for number, port in ports[server].items() if port in ended}
        compare(type(server).__name__, shared(server, streams), by_stream(server.senders()), cut_off)


def shared(server, streams):
    """Give the streams that are in words that a server knows."""
    return {number: one for number, one in streams.items() if server.chunking or not one.chunking}


def compare(name, streams, seen, cut_off):
    """Hold what another server has seen against what is valid, which was taken here: it has taken all of it.

    Whom it has cut off it had let end a message falsely: it has taken all that is valid before that message.
    """
    laxer = {number for number, one in streams.items() if set(seen[number]) - set(one.valid)}
    assert cut_off <= laxer
    for number, one in streams.items():
        valid, taken = set(one.valid), set(seen[number])
        if number in cut_off:
            valid = {sender for sender in valid if place(sender) < min(map(place, taken - valid))}
        assert valid <= taken, (name, number, one.packets)
    behind = sum(len(set(streams[number].valid) - set(seen[number])) for number in cut_off)
    print(
        {
            "server": name,
            "streams": len(streams),
            "taken": sum(len(seen[number]) for number in streams),
            "taken here": sum(len(one.valid) for one in streams.values()),
            "took others too": len(laxer),
            "cut off": len(cut_off),
            "never saw for that": behind,
        }
    )


def place(sender):
    """Give a message's place in its stream."""
    return int(sender.partition("-")[2].partition("@")[0])
