"""Replies: what goes on the wire, and which decision becomes which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decision import Accept, Defer, Discard, Disconnect, Hold, Reject
from gateway.smtp import reply as replies
from gateway.smtp.reply import Reply, answer, closes

OK = Reply(250, "2.0.0", "ok")


def test_one_line_carries_code_and_status():
    assert Reply(550, "5.7.1", "go away").wire() == b"550 5.7.1 go away\r\n"
    assert Reply(220, "", "mx ESMTP").wire() == b"220 mx ESMTP\r\n"


def test_every_line_of_many_carries_the_status():
    assert Reply(550, "5.7.1", "one\ntwo").wire() == b"550-5.7.1 one\r\n550 5.7.1 two\r\n"


def test_text_is_printable_ascii_unless_the_client_has_smtputf8():
    reply = Reply(550, "5.1.1", "kein Gru\u00df\t\x1b[0m")
    assert reply.wire() == b"550 5.1.1 kein Gru???[0m\r\n"
    assert reply.wire(utf8=True) == "550 5.1.1 kein Gru\u00df??[0m\r\n".encode()


@given(st.text(), st.booleans())
def test_no_text_makes_a_second_reply_or_a_line_that_is_too_long(text, utf8):
    wire = Reply(451, "4.3.0", text * 50).wire(utf8=utf8)
    *lines, end = wire.split(b"\r\n")
    assert end == b""
    assert len(wire) < 10_000
    assert all(line.startswith(b"451-4.3.0 ") for line in lines[:-1])
    assert lines[-1].startswith(b"451 4.3.0 ")
    assert all(len(line) <= 510 for line in lines)
    assert not any(octet < 0x20 or octet == 0x7F for line in lines for octet in line)
    if not utf8:
        assert wire.isascii()


@pytest.mark.parametrize(
    ("decision", "stage", "code"),
    [
        (Reject("5.7.1", "x"), "connect", 554),
        (Defer("4.7.1", "x"), "connect", 421),
        (Reject("5.7.1", "x"), "helo", 554),
        (Defer("4.3.0", "x"), "helo", 421),
        (Reject("5.1.8", "x"), "mail", 550),
        (Reject("5.7.1", "x"), "mail", 553),
        (Reject("5.3.4", "x"), "mail", 552),
        (Reject("5.7.1", "x"), "rcpt", 553),
        (Reject("5.1.1", "x"), "rcpt", 550),
        (Defer("4.7.1", "x"), "rcpt", 450),
        (Defer("4.3.1", "x"), "rcpt", 452),
        (Defer("4.3.0", "x"), "rcpt", 451),
        (Reject("5.7.1", "x"), "data", 550),
        (Defer("4.2.0", "x"), "data", 450),
        (Reject("5.7.1", "x"), "message", 554),
        (Reject("5.3.4", "x"), "message", 552),
        (Defer("4.7.1", "x"), "message", 451),
        (Defer("4.3.1", "x"), "message", 452),
        (Disconnect("4.7.0", "x"), "rcpt", 421),
        (Disconnect("5.7.0", "x"), "message", 554),
    ],
)
def test_a_refusal_becomes_the_reply_of_the_table(decision, stage, code):
    assert answer(decision, stage, OK) == Reply(code, decision.status, "x")


@pytest.mark.parametrize("decision", [None, Accept(), Hold("look"), Discard("spam")])
def test_all_else_is_a_yes(decision):
    assert answer(decision, "message", OK) is OK
    assert not closes(decision, "connect")


def test_which_refusals_end_the_connection():
    assert closes(Reject("5.7.1", "x"), "connect")
    assert closes(Defer("4.7.1", "x"), "helo")
    assert not closes(Reject("5.7.1", "x"), "mail")
    assert closes(Disconnect("4.7.0", "x"), "data")


def test_every_standing_reply_has_a_status_of_its_class():
    standing = [one for one in vars(replies).values() if isinstance(one, Reply)]
    assert len(standing) > 25
    for one in standing:
        assert len(one.wire()) <= 512
        if one is not replies.GO_AHEAD:
            assert one.status[0] == str(one.code)[0]
