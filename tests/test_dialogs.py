"""Plays `dialogs/*.smtp` against the real reception chain and compares what was said and stored.

A dialog is a text that a mail admin can write:

    # Why this dialog exists.
    conf: limits: {message_size: 1K}      more settings, on top of dialogs/conf.d
    S: 220 mail.example.org *             expected; `*` stands for anything
    C: EHLO client.example                sent, with CRLF; lines without an S between leave in one packet
    C! NOOP\\n                             sent as it is, with escapes, without CRLF
    C* 600 x                              sent 600 times, without CRLF
    S: (closed)                           the server has hung up
    stored: <a@example.com> -> <info@example.org>
    | Subject: one line of the message a line

On a difference `NAME.got` holds what really happened; `mv NAME.got NAME.smtp` accepts it.
The plugins in dialogs/plugins are site plugins: who exists, and senders that make every stage refuse.
"""

import asyncio
import re
import socket
from itertools import zip_longest
from pathlib import Path

import pytest
import structlog

from gateway.authentication.login import Login
from gateway.counters import Counters
from gateway.loader import Loader
from gateway.plugin import Services, Site
from gateway.queue import Filter, MemoryQueue
from gateway.reception import Reception
from gateway.settings import Settings
from gateway.settings.tree import Tree
from gateway.smtp import Server
from gateway.smtp.tls import Certificates
from gateway.testing.fakes import FakeClock, FakeDns

FOLDER = Path(__file__).parent / "dialogs"
PATIENCE = 10


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.smtp")), ids=lambda path: path.stem)
async def test_dialog(path, tmp_path):
    text = path.read_text("utf-8")
    got = path.with_suffix(".got")
    assert text.startswith("# "), "the first line says why"
    went = await play(text, tmp_path)
    if went != text:
        got.write_text(went, "utf-8")
    else:
        got.unlink(missing_ok=True)
    assert went == text


async def play(text, tmp_path):
    """Give the dialog as it really went; lines that match their pattern are kept as written."""
    lines = text.splitlines()
    conf = "\n".join(line.removeprefix("conf: ") for line in lines if line.startswith("conf: "))
    emitted, queue = [], MemoryQueue()
    await queue.open()
    server = build(conf, queue, emitted, tmp_path)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        listening = await asyncio.get_running_loop().create_server(server, sock=sock)
        went = await converse(lines, *sock.getsockname())
        listening.close()
        await server.close_gently()
    went += match([line for line in lines if line.startswith(("stored:", "|"))], await stored(queue))
    await queue.close()
    return "\n".join(went) + "\n"


def build(conf, queue, emitted, tmp_path):
    """Make the server of a gateway whose queue nobody empties."""
    texts = {str(path): path.read_text("utf-8") for path in sorted(FOLDER.glob("conf.d/*.yaml"))}
    tree = Tree.parse({**texts, "dialog.yaml": conf}, FOLDER)
    settings = Settings.of(tree)
    clock = FakeClock()
    services = Services(clock, FakeDns(), Counters(clock))
    site = Site(settings.gateway.hostname, "postmaster@example.org", tmp_path, FOLDER, 604800.0)
    chain = (
        Loader(services, emitted.append, structlog.get_logger)
        .build(tree, site, [FOLDER / "plugins"], Settings.names())
        .chain
    )
    reception = Reception(lambda: chain, queue, services, lambda: settings.limits, lambda: None)
    loop = asyncio.get_running_loop()
    name, listener = settings.gateway.hostname, settings.listeners[0]
    login = Login(reception, services, lambda: settings.limits, b"secret")
    return Server(reception, settings.limits, name, listener, loop, login, Certificates(settings.tls))


async def converse(lines, host, port):
    reader, writer = await asyncio.open_connection(host, port)
    went, unsent = [], b""
    for line in lines:
        if line.startswith(("stored:", "|")):
            break
        if line.startswith("S: "):
            writer.write(unsent)
            unsent = b""
            said = await hear(reader)
            went.append(line if matches(line, f"S: {said}") else f"S: {said}")
            continue
        unsent += spoken(line)
        went.append(line)
    writer.write(unsent)
    if not writer.transport.is_closing():
        writer.write_eof()
    while (said := await hear(reader)) != "(closed)":
        went.append(f"S: {said}")
    writer.close()
    return went


def spoken(line):
    """Give the bytes that a line of a dialog sends."""
    if line.startswith("C: ") or line == "C:":
        return line[3:].encode() + b"\r\n"
    if line.startswith("C! "):
        return raw(line[3:])
    if line.startswith("C* "):
        count, text = line[3:].split(" ", 1)
        return int(count) * raw(text)
    assert not line or line.startswith(("#", "conf: ")), f"not a line of a dialog: {line}"
    return b""


def raw(text):
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")


async def hear(reader):
    try:
        async with asyncio.timeout(PATIENCE):
            line = await reader.readline()
    except TimeoutError:
        return "(silence)"
    except ConnectionError:
        line = b""
    return line.decode("utf-8", "backslashreplace").rstrip("\r\n") if line else "(closed)"


async def stored(queue):
    """Write what is in the queue, sorted by sender."""
    found = []
    for entry in await queue.list(Filter()):
        full = await queue.get(entry.id)
        names = [f"<{one.recipient.address}>{' held' * (one.state == 'held')}" for one in full.recipients]
        lines = [f"stored: <{full.sender}> -> {' '.join(names)}"]
        text = bytes(full.message).decode("utf-8", "backslashreplace")
        found.append(lines + [f"| {line}".rstrip() for line in text.split("\n")[:-1]])
    return [line for lines in sorted(found) for line in lines]


def match(expected, real):
    pairs = zip_longest(expected, real, fillvalue=None)
    return [
        line if line is not None and matches(line, is_) else is_ for line, is_ in pairs if is_ is not None
    ]


def matches(pattern, line):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), line) is not None
