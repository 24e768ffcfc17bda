"""Messages as bytes: edits of the header leave every other byte alone, and memory is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import Message
from gateway.errors import MessageTooBig
from gateway.message import HEADER_LIMIT, IN_MEMORY, FileBody, Spool, field_bytes

RAW = st.text("aB:\n\t .\xe9", max_size=80).map(lambda text: text.encode("latin-1"))


@given(RAW)
def test_a_message_comes_back_as_it_came(raw):
    message = Message.parse(raw)
    assert bytes(message) == raw
    assert message.size == len(raw)
    message.fields()
    assert bytes(message) == raw


@given(RAW)
def test_edits_leave_every_other_byte_alone(raw):
    message = Message.parse(raw)
    message.prepend("Received", "by me")
    assert bytes(message) == b"Received: by me\n" + raw
    assert message.remove("received") == 1 + Message.parse(raw).remove("received")
    assert Message.parse(raw).body == message.body


def test_a_copy_is_another_message():
    message = Message.parse(b"A: 1\n\nbody\n")
    other = message.copy()
    other.append("B", "2")
    assert bytes(message) == b"A: 1\n\nbody\n"
    assert other.fields() == [("A", "1"), ("B", "2")]


def test_folding_is_undone_and_names_have_no_case():
    assert Message.parse(b"To: a,\n\tb\nto: c\n\n").values("TO") == ["a,\tb", "c"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("A B", "x"), ("A:", "x"), ("", "x"), ("A", "x\nB: y"), ("A", "x\r"), ("A", "x\0"), ("A", "x\n")],
)
def test_no_value_becomes_a_second_field(name, value):
    with pytest.raises(ValueError, match="not one header field"):
        field_bytes(name, value)


@pytest.mark.parametrize("size", [0, 10, IN_MEMORY - 20, IN_MEMORY + 1, 3 * IN_MEMORY])
def test_a_spool_gives_what_was_written(tmp_path, size):
    raw = b"A: 1\n\n" + b"x" * size
    spool = Spool(tmp_path)
    for at in range(0, len(raw), 50_000):
        spool.write(raw[at : at + 50_000])
    message = spool.finish()
    assert bytes(message) == raw
    assert message.header == b"A: 1\n"
    assert isinstance(message.body, FileBody) is (size > IN_MEMORY)


def test_a_spool_over_its_limit_leaves_no_file(tmp_path):
    spool = Spool(tmp_path, limit=2 * IN_MEMORY)
    spool.write(b"A: 1\n\n" + b"x" * IN_MEMORY)
    assert list(tmp_path.iterdir())
    with pytest.raises(MessageTooBig):
        spool.write(b"x" * IN_MEMORY)
    spool.discard()
    spool.discard()
    assert not list(tmp_path.iterdir())


def test_a_header_without_end_has_a_bound(tmp_path):
    spool = Spool(tmp_path)

    def fill():
        for _ in range(HEADER_LIMIT // 1000 + 300):
            spool.write(b"x" * 1000)

    with pytest.raises(MessageTooBig, match="header"):
        fill()
