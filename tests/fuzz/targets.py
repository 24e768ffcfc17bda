"""What is fuzzed: a function for each reader, called with any bytes, that fails when a promise is broken.

A reader may raise the error that it documents. Beyond that it has to keep what its callers rely on: how
bytes were cut into packets changes nothing, what is written is read back, no line end gets where it does
not belong.
"""

import asyncio
import importlib.util
import io
import socket
import sys
from contextlib import suppress
from pathlib import Path
from string import ascii_uppercase

from gateway.address import Address, parse_path
from gateway.errors import AddressError, ArchiveError, ConfigError, DialogueError, MilterError
from gateway.message import Message
from gateway.milter import wire as milter_wire
from gateway.queue.archive.form import read_snapshot, snapshot_json
from gateway.queue.archive.reader import Archive
from gateway.settings.tree import Tree
from gateway.settings.yamltree import compose
from gateway.smtp import sasl
from gateway.smtp.framing import END, BadLine, Chunks, CommandLines, Content
from gateway.smtp.parameters import MAIL_PARAMETERS, RCPT_PARAMETERS, Refused, parse_argument
from gateway.smtp.server import proxy
from gateway.smtp.wire import ReplyReader, encode_content


def part(plugin, name):
    """Load a file of a plugin by its path, as the loader does."""
    path = Path(__file__).parents[2] / "plugins" / plugin / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"fuzzed_{plugin}_{name}", path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


parser, rules_file = PARTS = part("dot_qmail", "parser"), part("relay_control", "tcprules")
LIMIT = 64


def packets(data):
    """Cut bytes as their own first byte says; gives what is cut, and the packets."""
    size, whole = data[:1][0] % 9 + 1 if data else 1, data[1:]
    return whole, [whole[i : i + size] for i in range(0, len(whole), size)]


def text_of(data):
    return data.decode("utf-8", "surrogateescape")


def command_lines(data):
    def lines(pieces):
        reader, found = CommandLines(LIMIT), []
        for piece in pieces:
            reader.feed(piece)
            while (line := reader.take()) is not None:
                found.append(line)
            assert len(reader.some(0)) == 0
        return found, reader.rest()

    whole, pieces = packets(data)
    found, rest = lines(pieces)
    assert (found, len(rest) > LIMIT) == (lines([whole])[0], False)
    assert len(found) == whole.count(b"\n")
    for line, raw in zip(found, whole.split(b"\n"), strict=False):
        if isinstance(line, BadLine):
            assert len(raw) >= LIMIT or raw[-1:] != b"\r" or b"\r" in raw[:-1] or b"\0" in raw
        else:
            assert line + b"\r" == raw
            assert len(raw) < LIMIT


def content_after_data(data):
    """The one true end is known, and so is what stands before it."""
    whole, pieces = packets(data)
    stop = (b"\r\n" + whole).find(END)
    for normalise in (False, True):
        reader, text, left = Content(normalise=normalise), b"", list(pieces)
        while left and not reader.ended:
            text += reader.feed(left.pop(0))
        assert reader.ended == (stop >= 0)
        if reader.ended:
            assert reader.rest + b"".join(left) == whole[stop + len(END) - 2 :]
            raw = (b"\r\n" + whole)[: stop + 2].replace(b"\r\n.", b"\r\n")[2:]
            _is_the_text(reader, text, raw, normalise=normalise)


def content_of_chunks(data):
    whole, pieces = packets(data)
    for normalise in (False, True):
        reader = Chunks(normalise=normalise)
        text = b"".join(map(reader.feed, pieces)) + reader.finish()
        _is_the_text(reader, text, whole, normalise=normalise)


def _is_the_text(reader, text, raw, *, normalise):
    plain = raw.replace(b"\r\n", b"")
    clean = not any(octet in plain for octet in (b"\r", b"\n", b"\0"))
    assert reader.octets == len(raw)
    assert reader.malformed == (not normalise and not clean)
    if clean:
        assert text == raw.replace(b"\r\n", b"\n")
    assert b"\r" not in text
    assert b"\0" not in text


def content_sent(data):
    """What `remote` sends has one end and whole line ends, and another server reads the same text."""
    whole, pieces = packets(data)
    sent = b"".join(encode_content(pieces))
    assert sent == b"".join(encode_content([whole]))
    assert sent.count(b"\r") == sent.count(b"\n") == sent.count(b"\r\n")
    assert (b"\r\n" + sent).find(END) == len(sent) + 2 - len(END)
    expected = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    expected += b"" if not expected or expected.endswith(b"\n") else b"\n"
    if b"\0" not in whole:
        assert Content().feed(sent) == expected


def address(data):
    text = text_of(data)
    for keyword in ("", "FROM"):
        with suppress(AddressError):
            found, _ = parse_path(text, keyword)
            assert not set(found) & set("\0\r\n")
            assert parse_path(f"FROM:<{found.quoted()}> SIZE=1", "FROM") == (found, "SIZE=1")
            assert not set(found.domain) & set(ascii_uppercase)
            assert bytes(Address.decode(bytes(found))) == bytes(found)
    for known in (MAIL_PARAMETERS, RCPT_PARAMETERS):
        for strict in (True, False):
            with suppress(Refused):
                parse_argument(text, "FROM", "5.1.7", known, strict=strict)


def replies(data):
    def read(pieces):
        reader, found = ReplyReader(), []
        try:
            for piece in pieces:
                reader.feed(piece)
                while (reply := reader.next()) is not None:
                    found.append(reply)
        except DialogueError:
            return None
        return found

    whole, pieces = packets(data)
    found = read(pieces)
    assert found == read([whole])
    for reply in found or ():
        assert 200 <= reply.code <= 999
        assert "\n" not in "".join(reply.lines)
        assert reply.status[1] == "."
        str(reply)


def dot_qmail(data):
    text = text_of(data)
    with suppress(parser.BlankFirstLineError):
        for one in parser.parse(text):
            assert "\n" not in one.text
            assert "\0" not in one.text
    local, _, host = text.partition("@")
    for line in (parser.delivered_to(local, host), parser.return_path(text), parser.from_line(text, 0.0)):
        assert line.count("\n") == 1
        assert line.endswith("\n")
    assert all("/" not in name or "/" in text for name, _ in parser.candidates("-", text[:200]))
    parser.variables(local, host, text)
    whole, pieces = packets(data)
    quoted = b"".join(parser.quote_mbox(pieces))
    assert quoted == b"".join(parser.quote_mbox([whole]))
    assert b"\nFrom " not in b"\n" + quoted


def yaml_settings(data):
    """Two files, one after the other."""
    first, _, second = data.decode("utf-8", "replace").partition("\0")
    with suppress(ConfigError):
        if node := compose(first, "a.yaml"):
            node.plain()
    with suppress(ConfigError):
        tree = Tree.parse({"a.yaml": first, "b.yaml": second})
        for name in tree.sections():
            tree.plain(name)


def tcprules(data):
    with suppress(ConfigError):
        rules = rules_file.Rules.parse(text_of(data), "tcp.smtp")
        for rule in rules:
            rule.value("RELAYCLIENT")
        rules.find("192.0.2.1", "a.example", "joe")
        rules.find("192.0.2.1", None)


def sasl_exchange(data):
    """Lines are the responses, in base64 and as they are."""
    lines = data.split(b"\n")
    for line in lines:
        with suppress(sasl.Malformed):
            sasl.decode(line)
    for mechanism in sasl.MECHANISMS.values():
        for initial in (True, False):
            _exchange(mechanism, list(lines), initial=initial)


KEYS = sasl.make_keys("secret", 4096)


def _exchange(mechanism, left, *, initial):
    exchange = mechanism(left.pop(0) if initial and left else None, b"a secret")
    try:
        asked = next(exchange)
        while True:
            keys = isinstance(asked, sasl.Lookup)
            asked = exchange.send(KEYS if keys else left.pop(0) if left else b"")
    except (sasl.Malformed, sasl.Denied):
        return
    except StopIteration as end:
        login = end.value.login
    assert login
    assert not set(login) & set("\0\r\n")


def proxy_header(data):
    """Nothing behind a header is taken off the socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(data[:4000])
        theirs.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            LOOP.run_until_complete(asyncio.wait_for(proxy.read_header(ours, LOOP), 0.05))
            assert data[:4000].endswith(ours.recv(4000))
    with suppress(Refused):
        for value in proxy._attributes(text_of(data)).values():
            assert value.isprintable()


LOOP = asyncio.new_event_loop()


def milter_packets(data):
    for table in (milter_wire.COMMANDS, milter_wire.ANSWERS):
        found = []
        with suppress(MilterError):
            decoder = milter_wire.Decoder(table)
            decoder.receive(data)
            while packet := decoder.next_packet():
                found.append(packet)
        for packet in found:
            decoder = milter_wire.Decoder(table)
            decoder.receive(milter_wire.encode(packet))
            assert decoder.next_packet() == packet


def archive(data):
    with suppress(ArchiveError):
        whole = Archive(io.BytesIO(data), "a.tar")
        whole.verify()
        list(whole.ids())


def archived_message(data):
    with suppress(ValueError):
        message = Message(b"")
        read = read_snapshot(data, message)
        assert read_snapshot(snapshot_json(read), message) == read


TARGETS = {
    one.__name__: one
    for one in (
        command_lines,
        content_after_data,
        content_of_chunks,
        content_sent,
        address,
        replies,
        dot_qmail,
        yaml_settings,
        tcprules,
        sasl_exchange,
        proxy_header,
        milter_packets,
        archive,
        archived_message,
    )
}
