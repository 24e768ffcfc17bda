"""Bytes <-> packets of the milter protocol. Pure: no IO; whatever comes, it is a packet or a MilterError.

A packet is its length in 4 bytes (code and data), one byte of code, and the data. There is no mark to find
the next one by, so after one wrong byte the connection can only be closed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import MilterError
from gateway.milter import packets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.milter.packets import Packet

    Parse = Callable[[bytes], Packet]

#: Data that a stock filter takes in one packet; one more byte and libmilter closes the connection.
LARGEST = 65_535
#: Data that we take in one packet; some libraries are off by one, and others may agree on more.
LIMIT = 1024 * 1024
#: Arguments, macros or macro names in one packet.
MANY = 1000
#: Stages in the order of their numbers, by which a filter names the macros that it wants.
MACRO_STAGES: tuple[type[Packet], ...] = (
    packets.Connect,
    packets.Helo,
    packets.Mail,
    packets.Rcpt,
    packets.Data,
    packets.EndOfMessage,
    packets.EndOfHeaders,
)
_LENGTH = struct.Struct(">I")
_NEGOTIATE = struct.Struct(">III")
_PORT = struct.Struct(">H")

P = TypeVar("P", bound=packets.Packet)


class Decoder:
    """Makes packets of bytes as they come: `receive(bytes)`, then `next_packet()` until it gives None."""

    def __init__(self, table: Mapping[bytes, Parse], limit: int = LIMIT) -> None:
        self._table = table
        self._limit = limit
        self._buffer = bytearray()

    def receive(self, data: bytes) -> None:
        """Take what came from the other side."""
        self._buffer += data

    def next_packet(self) -> Packet | None:
        """Give the next packet; None when more bytes are needed. Raises MilterError."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not 1 <= length <= self._limit + 1:
            raise MilterError(f"a packet of {length} bytes")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        code, data = bytes(self._buffer[4:5]), bytes(self._buffer[5:end])
        del self._buffer[:end]
        parse = self._table.get(code)
        if parse is None:
            raise MilterError(f"a packet of the unknown kind {code!r}")
        return parse(data)


def encode(packet: Packet) -> bytes:
    """Write a packet. Raises MilterError when a text holds a NUL, which would end it."""
    data = data_of(packet)
    return _LENGTH.pack(len(data) + 1) + packet.CODE + data


def data_of(packet: Packet) -> bytes:
    """Write what stands behind the code; LARGEST applies to it. Raises MilterError."""
    write = _WRITE.get(type(packet))
    return write(packet) if write else b""


# Reading


def _strings(data: bytes, least: int, most: int) -> list[bytes]:
    """Split texts that end with NUL each. Raises MilterError."""
    if data and not data.endswith(b"\0"):
        raise MilterError("a text without its end")
    if not least <= data.count(b"\0") <= most:
        raise MilterError(f"{data.count(0)} texts in a packet")
    return data.split(b"\0")[:-1]


def _empty(kind: type[P]) -> Parse:
    def parse(data: bytes) -> Packet:
        if data:
            raise MilterError(f"{kind.__name__} with {len(data)} bytes of data")
        return kind()

    return parse


def _texts(kind: Callable[..., Packet], least: int, most: int) -> Parse:
    return lambda data: kind(*_strings(data, least, most))


def _envelope(kind: type[packets.Mail | packets.Rcpt]) -> Parse:
    def parse(data: bytes) -> Packet:
        address, *arguments = _strings(data, 1, MANY)
        return kind(address, tuple(arguments))

    return parse


def _indexed(kind: type[packets.InsertHeader | packets.ChangeHeader]) -> Parse:
    def parse(data: bytes) -> Packet:
        if len(data) < _LENGTH.size:
            raise MilterError("a header's index is cut off")
        (index,) = _LENGTH.unpack_from(data)
        if index >= 2**31:
            raise MilterError(f"the header index {index}")
        name, value = _strings(data[4:], 2, 2)
        return kind(index, name, value)

    return parse


def _connect(data: bytes) -> Packet:
    hostname, end, rest = data.partition(b"\0")
    family = rest[:1]
    if not end or family not in (b"4", b"6", b"L", b"U"):
        raise MilterError("a client of no known address family")
    if family == b"U":
        return packets.Connect(hostname, family)
    if len(rest) < 1 + _PORT.size:
        raise MilterError("a client's address is cut off")
    (port,) = _PORT.unpack_from(rest, 1)
    (address,) = _strings(rest[3:], 1, 1)
    return packets.Connect(hostname, family, port, address)


def _macros(data: bytes) -> Packet:
    if not data:
        raise MilterError("macros for no command")
    texts = _strings(data[1:], 0, 2 * MANY)
    if len(texts) % 2:
        raise MilterError("a macro without a value")
    names = [bare(name) for name in texts[::2]]
    return packets.Macros(data[:1], tuple(zip(names, texts[1::2], strict=True)))


def _negotiate(data: bytes) -> Packet:
    if len(data) < _NEGOTIATE.size:
        raise MilterError("a negotiation that is cut off")
    lists: list[tuple[int, tuple[bytes, ...]]] = []
    rest = data[_NEGOTIATE.size :]
    while rest:
        stage, end = rest[:4], rest.find(b"\0", 4)
        if len(stage) < _LENGTH.size or end < 0 or len(lists) >= len(MACRO_STAGES):
            raise MilterError("a list of macros that is none")
        names, rest = rest[4:end], rest[end + 1 :]
        lists.append((_LENGTH.unpack(stage)[0], tuple(map(bare, names.replace(b",", b" ").split()[:MANY]))))
    version, actions, steps = _NEGOTIATE.unpack_from(data)
    return packets.Negotiate(version, actions, steps, tuple(lists))


def bare(name: bytes) -> bytes:
    """Take the braces off a macro's name."""
    return name[1:-1] if name.startswith(b"{") and name.endswith(b"}") else name


#: What an MTA may say.
COMMANDS: dict[bytes, Parse] = {
    b"O": _negotiate,
    b"D": _macros,
    b"C": _connect,
    b"H": _texts(packets.Helo, 1, 1),
    b"M": _envelope(packets.Mail),
    b"R": _envelope(packets.Rcpt),
    b"T": _empty(packets.Data),
    b"L": _texts(packets.Header, 2, 2),
    b"N": _empty(packets.EndOfHeaders),
    b"B": packets.Body,
    b"E": packets.EndOfMessage,
    b"A": _empty(packets.Abort),
    b"Q": _empty(packets.Quit),
    b"K": _empty(packets.QuitForNext),
    b"U": _texts(packets.Unknown, 1, 1),
}
#: What a filter may say.
ANSWERS: dict[bytes, Parse] = {
    b"O": _negotiate,
    b"c": _empty(packets.Continue),
    b"a": _empty(packets.Accept),
    b"r": _empty(packets.Reject),
    b"t": _empty(packets.TempFail),
    b"y": _texts(packets.ReplyCode, 1, 1),
    b"d": _empty(packets.Discard),
    b"4": _empty(packets.Shutdown),
    b"f": _empty(packets.ConnectionFailed),
    b"s": _empty(packets.Skip),
    b"p": _empty(packets.Progress),
    b"h": _texts(packets.AddHeader, 2, 2),
    b"i": _indexed(packets.InsertHeader),
    b"m": _indexed(packets.ChangeHeader),
    b"b": packets.ReplaceBody,
    b"+": _texts(packets.AddRecipient, 1, 1),
    b"2": _texts(packets.AddRecipientWithArguments, 1, 2),
    b"-": _texts(packets.DeleteRecipient, 1, 1),
    b"e": _texts(packets.ChangeSender, 1, 2),
    b"q": _texts(packets.Quarantine, 1, 1),
}

# Writing


def _text(*texts: bytes) -> bytes:
    if any(b"\0" in text for text in texts):
        raise MilterError("a NUL inside a text")
    return b"".join(text + b"\0" for text in texts)


def _braced(name: bytes) -> bytes:
    return name if len(name) == 1 else b"{%b}" % name


def _write_negotiate(p: packets.Negotiate) -> bytes:
    lists = (_LENGTH.pack(stage) + _text(b" ".join(map(_braced, names))) for stage, names in p.macros)
    return _NEGOTIATE.pack(p.version, p.actions, p.steps) + b"".join(lists)


def _write_connect(p: packets.Connect) -> bytes:
    address = b"" if p.family == b"U" else _PORT.pack(p.port) + _text(p.address)
    return _text(p.hostname) + p.family + address


def _write_macros(p: packets.Macros) -> bytes:
    return p.command + b"".join(_text(_braced(name), value) for name, value in p.values)


def _write_envelope(p: packets.Mail | packets.Rcpt) -> bytes:
    return _text(p.address, *p.arguments)


def _write_indexed(p: packets.InsertHeader | packets.ChangeHeader) -> bytes:
    return _LENGTH.pack(p.index) + _text(p.name, p.value)


def _write_arguments(p: packets.AddRecipientWithArguments | packets.ChangeSender) -> bytes:
    return _text(p.address, *([p.arguments] if p.arguments else []))


#: Packets that are not here have no data.
_WRITE: dict[type[Packet], Callable[..., bytes]] = {
    packets.Negotiate: _write_negotiate,
    packets.Macros: _write_macros,
    packets.Connect: _write_connect,
    packets.Helo: lambda p: _text(p.name),
    packets.Mail: _write_envelope,
    packets.Rcpt: _write_envelope,
    packets.Header: lambda p: _text(p.name, p.value),
    packets.Body: lambda p: p.content,
    packets.EndOfMessage: lambda p: p.content,
    packets.Unknown: lambda p: _text(p.line),
    packets.ReplyCode: lambda p: _text(p.text),
    packets.AddHeader: lambda p: _text(p.name, p.value),
    packets.InsertHeader: _write_indexed,
    packets.ChangeHeader: _write_indexed,
    packets.ReplaceBody: lambda p: p.content,
    packets.AddRecipient: lambda p: _text(p.address),
    packets.AddRecipientWithArguments: _write_arguments,
    packets.DeleteRecipient: lambda p: _text(p.address),
    packets.ChangeSender: _write_arguments,
    packets.Quarantine: lambda p: _text(p.reason),
}
