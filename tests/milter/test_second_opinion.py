"""Another implementation of the wire reads what we write, and writes what we read."""

from ipaddress import ip_address

import pytest

from gateway.milter import packets as p
from gateway.milter import wire

theirs = pytest.importorskip("kilter.protocol.messages")
buffer = pytest.importorskip("kilter.protocol.buffer")

BOTH = [
    (p.Helo(b"client.example"), lambda m: m.Helo("client.example")),
    (
        p.Connect(b"h.example", b"4", 25, b"192.0.2.7"),
        lambda m: m.Connect("h.example", ip_address("192.0.2.7"), 25),
    ),
    (
        p.Connect(b"h.example", b"6", 25, b"2001:db8::7"),
        lambda m: m.Connect("h.example", ip_address("2001:db8::7"), 25),
    ),
    (
        p.Macros(b"M", ((b"i", b"4X"), (b"auth_type", b"PLAIN"))),
        lambda m: m.Macro(ord("M"), {"i": "4X", "{auth_type}": "PLAIN"}),
    ),
    (p.Mail(b"<a@b>", (b"SIZE=1",)), lambda m: m.EnvelopeFrom(b"<a@b>", [b"SIZE=1"])),
    (p.Rcpt(b"<a@b>"), lambda m: m.EnvelopeRecipient(b"<a@b>", [])),
    (p.Data(), lambda m: m.Data()),
    (p.Header(b"Subject", b" caf\xe9\n\tx"), lambda m: m.Header("Subject", b" caf\xe9\n\tx")),
    (p.EndOfHeaders(), lambda m: m.EndOfHeaders()),
    (p.Body(b"x\r\n\xff\0"), lambda m: m.Body(b"x\r\n\xff\0")),
    (p.EndOfMessage(b"end"), lambda m: m.EndOfMessage(b"end")),
    (p.Abort(), lambda m: m.Abort()),
    (p.Quit(), lambda m: m.Close()),
    (p.Continue(), lambda m: m.Continue()),
    (p.Accept(), lambda m: m.Accept()),
    (p.Reject(), lambda m: m.Reject()),
    (p.Discard(), lambda m: m.Discard()),
    (p.TempFail(), lambda m: m.TemporaryFailure()),
    (p.Skip(), lambda m: m.Skip()),
    (p.Progress(), lambda m: m.Progress()),
    (p.AddHeader(b"X", b" v"), lambda m: m.AddHeader("X", b" v")),
    (p.InsertHeader(1, b"X", b"v"), lambda m: m.InsertHeader(1, "X", b"v")),
    (p.ChangeHeader(2, b"X", b""), lambda m: m.ChangeHeader(2, "X", b"")),
    (p.ReplaceBody(b"new"), lambda m: m.ReplaceBody(b"new")),
    (p.AddRecipient(b"<a@b>"), lambda m: m.AddRecipient("<a@b>")),
    (p.DeleteRecipient(b"<a@b>"), lambda m: m.RemoveRecipient("<a@b>")),
    (p.Quarantine(b"why"), lambda m: m.Quarantine("why")),
]


@pytest.mark.parametrize(("ours", "make"), BOTH, ids=lambda one: type(one).__name__)
def test_both_write_the_same_bytes_and_read_each_others(ours, make):
    packed = buffer.SimpleBuffer(1024)
    make(theirs).pack(packed)
    raw = packed[:].tobytes()
    assert wire.encode(ours) == raw
    table = wire.COMMANDS if type(ours) in {type(one) for one, _ in BOTH[:13]} else wire.ANSWERS
    decoder = wire.Decoder(table)
    decoder.receive(raw)
    assert decoder.next_packet() == ours
    unpacked, size = theirs.Message.unpack(packed)
    assert size == len(raw)
    assert type(unpacked) is type(make(theirs))
