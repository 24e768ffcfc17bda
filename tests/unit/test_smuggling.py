"""No message hides another: false ends of data, by DATA and BDAT, pipelined, cut into packets at every octet.

The server is driven packet by packet, so that each cut is really seen. What another host once took for the
end of a message stands in front of commands that would send a second one: nobody may ever hear of its sender.
"""

import asyncio

import pytest
from driven import begun
from false_ends import FALSE_ENDS

ENVELOPE = b"MAIL FROM:<one@example.com>\r\nRCPT TO:<u@example.org>\r\n"
SECOND = b"MAIL FROM:<two@example.com>\r\nRCPT TO:<u@example.org>\r\nDATA\r\nx\r\n.\r\n"
LAST = b"MAIL FROM:<last@example.com>\r\nQUIT\r\n"


def by_data(variant):
    return ENVELOPE + b"DATA\r\nSubject: one\r\n\r\nbody" + variant + SECOND + b"\r\n.\r\n"


def by_one_chunk(variant):
    content = b"Subject: one\r\n\r\nbody" + variant + SECOND + b"BDAT 3 LAST\r\nx\r\n"
    return ENVELOPE + b"BDAT %d LAST\r\n" % len(content) + content


def by_chunks(variant):
    """The false end is cut by the end of a chunk; a chunk has a command in it that looks like the next."""
    raw, half = b"body" + variant + SECOND + b"BDAT 99 LAST\r\n", len(variant) // 2 + 4
    chunks = [raw[:half], raw[half : half + 3], b"", raw[half + 3 :]]
    said = [b"BDAT %d\r\n" % len(chunk) + chunk for chunk in chunks]
    return ENVELOPE + b"".join(said) + b"BDAT 2 LAST\r\n\r\n"


def by_refused_chunks(variant):
    """Nothing was begun: the octets are no commands all the same."""
    raw = b"body" + variant + SECOND
    return b"BDAT %d LAST\r\n" % len(raw) + raw


STREAMS = [by_data, by_one_chunk, by_chunks, by_refused_chunks]


async def play(folder, packets, **limits):
    """Serve one session of these packets; gives the reception and what was said."""
    reception, wire, server, connection = begun(folder, **limits)
    for packet in [b"EHLO c\r\n", *packets]:
        connection.data_received(packet)
        for _ in range(5):
            await asyncio.sleep(0)
    connection.eof_received()
    await asyncio.wait_for(server.close_gently(), 10)
    return reception, wire.said


def places(raw, variant):
    """Give where to cut a stream: one everywhere, the others around the false end, where they differ."""
    if variant == FALSE_ENDS[0]:
        return range(1, len(raw))
    middle = raw.index(b"body")
    return range(middle + 3, middle + 40)


async def shows_one_message(folder, raw, place, **limits):
    reception, said = await play(folder, [raw[:place], raw[place:]] if place else [raw], **limits)
    assert "two@example.com" not in reception.senders, (raw[:place], raw[place:])
    assert reception.senders[-1] == "last@example.com", "what came behind the real end is understood"
    assert len(reception.stored) <= 1
    assert said.endswith(b"221 2.0.0 goodbye\r\n")
    return reception.stored


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("variant", FALSE_ENDS, ids=repr)
async def test_a_false_end_hides_nothing_wherever_packets_end(tmp_path, stream, variant):
    raw = stream(variant) + LAST
    for place in (0, *places(raw, variant)):
        assert await shows_one_message(tmp_path, raw, place) == [], "a bare CR, LF or NUL is refused"


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("variant", FALSE_ENDS, ids=repr)
async def test_normalised_it_is_one_message_with_all_of_it_wherever_packets_end(tmp_path, stream, variant):
    raw = stream(variant) + LAST
    stored = await shows_one_message(tmp_path, raw, 0, bare_newlines="normalise")
    for place in places(raw, variant):
        assert await shows_one_message(tmp_path, raw, place, bare_newlines="normalise") == stored
    if stream is not by_refused_chunks:
        (message,) = stored
        assert b"MAIL FROM:<two@example.com>\n" in message
        assert not {b"\r", b"\0"} & {bytes([octet]) for octet in message}


@pytest.mark.parametrize("normalise", ["refuse", "normalise"])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("variant", FALSE_ENDS, ids=repr)
async def test_octet_by_octet(tmp_path, stream, variant, normalise):
    raw = stream(variant) + LAST
    reception, _ = await play(tmp_path, [bytes([octet]) for octet in raw], bare_newlines=normalise)
    assert "two@example.com" not in reception.senders
    assert reception.senders[-1] == "last@example.com"
