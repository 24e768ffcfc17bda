"""Framing: command lines and DATA content, whatever the packets look like."""

import time
from itertools import pairwise

import pytest
from false_ends import FALSE_ENDS
from hypothesis import given
from hypothesis import strategies as st

from gateway.smtp.framing import BadLine, Chunks, CommandLines, Content

BEFORE = b"Subject: one\r\n\r\nbody"
AFTER = b"MAIL FROM:<smuggled@example.org>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"


def read(pieces, *, normalise=False):
    """Feed pieces; give (content, Content, what came behind the end)."""
    content, text = Content(normalise=normalise), b""
    rest = b""
    for piece in pieces:
        if content.ended:
            rest += piece
        else:
            text += content.feed(piece)
    return text, content, content.rest + rest


def facts(pieces, *, normalise=False):
    text, content, rest = read(pieces, normalise=normalise)
    text = b"" if content.malformed else text
    return text, content.ended, content.malformed, content.octets, content.hops, rest


def cut(raw, *places):
    places = sorted({0, *places, len(raw)})
    return [raw[a:b] for a, b in pairwise(places)]


def stuffed(text):
    """What a compliant client sends for a content with LF line ends."""
    lines = text.split(b"\n")[:-1]
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


def test_content_comes_out_with_lf_and_without_stuffed_dots():
    text, content, rest = read([b"A: b\r\n\r\n..dot\r\n.x\r\n...\r\n.\r\nQUIT\r\n"])
    assert text == b"A: b\n\n.dot\nx\n..\n"
    assert rest == b"QUIT\r\n"
    assert content.octets == len(b"A: b\r\n\r\n.dot\r\nx\r\n..\r\n")


def test_an_empty_message_is_a_message():
    text, content, rest = read([b".\r\nNOOP\r\n"])
    assert (text, content.ended, content.malformed, content.octets, rest) == (
        b"",
        True,
        False,
        0,
        b"NOOP\r\n",
    )


def test_nothing_has_ended_before_the_last_octet():
    for size in range(len(b"a\r\n.\r\n")):
        assert not read([b"a\r\n.\r\n"[:size]])[1].ended


@pytest.mark.parametrize("variant", FALSE_ENDS, ids=repr)
def test_a_false_end_never_ends_a_message_at_any_split(variant):
    raw = BEFORE + variant + AFTER
    whole = facts([raw])
    assert whole[2], "it is malformed"
    assert whole[5] == b"QUIT\r\n", "it ends at the real end and nowhere else"
    for place in range(len(raw) + 1):
        assert facts(cut(raw, place)) == whole
    assert facts([bytes([octet]) for octet in raw]) == whole
    middle = len(BEFORE)
    for first in range(middle - 1, middle + len(variant) + 1):
        for second in range(first, middle + len(variant) + 2):
            assert facts(cut(raw, first, second)) == whole


@pytest.mark.parametrize("variant", FALSE_ENDS, ids=repr)
def test_normalising_repairs_and_never_ends_a_message_elsewhere(variant):
    raw = BEFORE + variant + AFTER
    whole = facts([raw], normalise=True)
    assert not whole[2]
    assert whole[5] == b"QUIT\r\n"
    assert b"\r" not in whole[0]
    assert b"\0" not in whole[0]
    assert b"MAIL FROM:<smuggled@example.org>\n" in whole[0]
    for place in range(len(raw) + 1):
        assert facts(cut(raw, place), normalise=True) == whole


def test_normalising_makes_lf_a_line_end_and_blanks_the_rest():
    assert read([b"a\nb\rc\0d\r\n.\r\n"], normalise=True)[0] == b"a\nb c d\n"


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
@pytest.mark.parametrize("place", [0, 1, 5, 12])
def test_one_wrong_octet_anywhere_makes_it_malformed(octet, place):
    raw = b"A: b\r\n\r\nlast\r\n"
    place = min(place, len(raw))
    broken = raw[:place] + octet + raw[place:] + b".\r\n"
    assert facts([broken])[1:3] == (True, True)
    assert facts([bytes([one]) for one in broken])[1:3] == (True, True)


def test_a_malformed_message_gives_no_more_content():
    content = Content()
    content.feed(b"a\nb\r\n")
    assert content.feed(b"c" * 100_000) == b""


@given(
    st.lists(
        st.sampled_from(
            [b"\r\n", b"\r", b"\n", b".", b"\0", b"x", b"Received: y", b"delivered", b"\r\n.\r\n"]
        ),
        max_size=30,
    ).map(b"".join),
    st.lists(st.integers(0, 120), max_size=8),
    st.booleans(),
)
def test_packets_do_not_matter(raw, places, normalise):
    raw += b"\r\n.\r\nQUIT\r\n"
    places = [place for place in places if place <= len(raw)]
    assert facts(cut(raw, *places), normalise=normalise) == facts([raw], normalise=normalise)


@given(
    st.lists(st.binary(max_size=40).map(lambda line: line.translate(None, b"\r\n\0")), max_size=12),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_what_a_client_stuffs_comes_out_as_it_went_in(lines, places):
    text = b"".join(line + b"\n" for line in lines)
    raw = stuffed(text)
    got, content, _ = read(cut(raw, *[place for place in places if place < len(raw)]))
    assert (got, content.ended, content.malformed) == (text, True, False)


@pytest.mark.parametrize(
    ("header", "hops"),
    [
        (b"Received: a\r\nDelivered-To: b\r\nSubject: c\r\n", 2),
        (b"RECEIVED: a\r\nreceived: b\r\ndElIvErEd-to: c\r\n", 3),
        # qmail's test is one of prefixes.
        (b"Received-SPF: pass\r\nDelivered-by: x\r\n", 2),
        (b"X-Received: a\r\n Received: folded\r\n\tdelivered\r\n", 0),
        (b"", 0),
    ],
)
def test_hops_are_counted_in_the_header_only(header, hops):
    raw = header + b"\r\nReceived: in the body\r\n\r\nDelivered-To: too\r\n.\r\n"
    assert read([raw])[1].hops == hops
    for place in range(len(raw)):
        assert read(cut(raw, place))[1].hops == hops
    assert read([bytes([octet]) for octet in raw])[1].hops == hops


def test_ten_megabytes_take_little_time():
    line = b"x" * 76 + b"\r\n"
    raw = b"Subject: big\r\n\r\n" + line * (10 * 1024**2 // len(line)) + b".\r\n"
    blocks = [raw[at : at + 65536] for at in range(0, len(raw), 65536)]

    def read():
        content = Content()
        for block in blocks:
            content.feed(block)
        assert content.ended

    # A step of Python for each line would cost more than ten times this yardstick.
    assert cost(read) < 8 * cost(lambda: raw.replace(b"\r\n", b"\n"))


def cost(call):
    """Give the CPU seconds of a call: the best of three, so that a busy machine does not count."""
    spent = []
    for _ in range(3):
        start = time.thread_time()
        call()
        spent.append(time.thread_time() - start)
    return min(spent)


def lines(pieces, limit=64):
    reader, found = CommandLines(limit), []
    for piece in pieces:
        reader.feed(piece)
        while (line := reader.take()) is not None:
            found.append(line)
    return found, reader.rest()


def test_lines_end_at_crlf():
    assert lines([b"EHLO a\r\nMAIL", b" FROM:<>\r", b"\nQU"]) == ([b"EHLO a", b"MAIL FROM:<>"], b"QU")


@pytest.mark.parametrize("raw", [b"NOOP\n", b"\n", b"NO\rOP\r\n", b"NOOP\r\r\n", b"NO\0OP\r\n", b"\r\r\n"])
def test_a_malformed_line_is_told_at_its_lf_and_the_next_is_read(raw):
    assert lines([raw + b"QUIT\r\n"]) == ([BadLine.MALFORMED, b"QUIT"], b"")
    assert lines([bytes([one]) for one in raw + b"QUIT\r\n"]) == ([BadLine.MALFORMED, b"QUIT"], b"")


@pytest.mark.parametrize("size", [64, 65, 1000])
def test_a_line_that_is_too_long_is_dropped_whole(size):
    raw = b"x" * (size - 2) + b"\r\n" + b"QUIT\r\n"
    expected = b"x" * 62 if size == 64 else BadLine.TOO_LONG
    assert lines([raw]) == ([expected, b"QUIT"], b"")
    assert lines([bytes([one]) for one in raw]) == ([expected, b"QUIT"], b"")


def test_a_line_without_an_end_holds_no_memory():
    reader = CommandLines(64)
    for _ in range(100):
        reader.feed(b"x" * 1000)
        assert reader.take() is None
    assert reader.rest() == b""


@given(
    st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"\0", b"QUIT", b"x" * 70]), max_size=20).map(b"".join),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_packets_do_not_matter_for_lines(raw, places):
    raw += b"\r\n"
    assert lines(cut(raw, *[place for place in places if place < len(raw)])) == lines([raw])


# The content of BDAT


def chunks(pieces, *, normalise=False):
    made = Chunks(normalise=normalise)
    text = b"".join(made.feed(piece) for piece in pieces) + made.finish()
    return b"" if made.malformed else text, made.malformed, made.octets, made.hops


def test_chunks_are_kept_with_lf_and_every_dot():
    raw = b"Received: x\r\n\r\n.\r\n..a\r\n\r\n.\r\nend"
    assert chunks([raw]) == (b"Received: x\n\n.\n..a\n\n.\nend", False, len(raw), 1)


@given(
    st.lists(
        st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"\0", b"x", b"Received: y", b"\r\n.\r\n"]), max_size=30
    ).map(b"".join),
    st.lists(st.integers(0, 120), max_size=8),
    st.booleans(),
)
def test_where_chunks_end_does_not_matter(raw, places, normalise):
    places = [place for place in places if place <= len(raw)]
    whole = chunks([raw], normalise=normalise)
    assert chunks(cut(raw, *places), normalise=normalise) == whole
    clean = raw.replace(b"\r\n", b"")
    wrong = any(octet in clean for octet in (b"\r", b"\n", b"\0"))
    assert whole[1] == (wrong and not normalise)
    assert whole[2] == len(raw)


@given(st.lists(st.binary(max_size=40).map(lambda line: line.translate(None, b"\r\n\0")), max_size=12))
def test_bdat_and_data_give_the_same_text(lines):
    text = b"".join(line + b"\n" for line in lines)
    assert chunks([text.replace(b"\n", b"\r\n")])[0] == read([stuffed(text)])[0] == text


def test_some_octets_of_what_waits():
    lines = CommandLines(100)
    lines.feed(b"BDAT 5\r\nab\r\ncNOOP\r\n")
    assert lines.take() == b"BDAT 5"
    assert [lines.some(3), lines.some(2), lines.take(), lines.some(9)] == [b"ab\r", b"\nc", b"NOOP", b""]
