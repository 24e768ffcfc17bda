"""remote: what becomes of 8-bit text at a host that does not offer 8BITMIME."""

import asyncio
import email
import email.policy
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import Address, Delivery, Entry, EntryRecipient, FileBody, Message, Recipient, Route, Stages
from gateway.testing.hosts import ScriptedHost

FOLDER = Path(__file__).parents[2] / "plugins" / "remote"


def load(part):
    spec = importlib.util.spec_from_file_location(
        "seven_bit_remote", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    if spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return importlib.import_module(f"{spec.name}.{part}")


seven_bit, mime = load("seven_bit"), load("mime")


def sent(raw):
    """Give the message as it goes to such a host."""
    return bytes(seven_bit.in_seven_bits(Message.parse(raw)))


def obstacle(raw):
    with pytest.raises(seven_bit.Unconvertible) as caught:
        sent(raw)
    return str(caught.value)


def leaves(raw):
    """Read a message as others do: the type and the octets of each part that holds text."""
    whole = email.message_from_bytes(raw, policy=email.policy.compat32)
    return [
        (part.get_content_type(), part.get_payload(decode=True))
        for part in whole.walk()
        if not part.is_multipart()
    ]


TEXT = "Subject: grüße\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n".encode()


# The message


@pytest.mark.parametrize("encoding", [b"8bit", b"8BIT", b"binary", b"7bit"])
def test_a_text_is_quoted_and_all_else_of_it_stays(encoding):
    lines = f"grüße \n.\n\nFrom here = there\n{'ü' * 1000}\nno line end".encode()
    raw = TEXT + b"Content-Transfer-Encoding: " + encoding + b"\nX-Last:  odd\t\n folded\n\n" + lines
    found = sent(raw)
    header, _, body = found.partition(b"\n\n")
    assert header == TEXT + b"X-Last:  odd\t\n folded\nContent-Transfer-Encoding: quoted-printable"
    assert body.isascii()
    assert max(map(len, body.split(b"\n"))) <= 76
    assert leaves(found) == [("text/plain", lines)]


def test_a_text_without_an_encoding_gets_one():
    assert sent(TEXT + b"\n\xc3\xbc\n") == TEXT + b"Content-Transfer-Encoding: quoted-printable\n\n=C3=BC\n"


def test_the_mark_of_an_mbox_is_no_obstacle():
    assert sent(b"From ann Mon\n" + TEXT + b"\n\xff\n").endswith(b"printable\n\n=FF\n")


def test_text_that_nobody_has_declared_is_called_unknown():
    """RFC 1428 section 3."""
    assert sent(b"Subject: x\n\ngr\xfc\xdfe\n") == (
        b"Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\n"
        b"Content-Transfer-Encoding: quoted-printable\n\ngr=FC=DFe\n"
    )


@pytest.mark.parametrize(
    "raw",
    [b"Subject: x\n\nplain\n", "Subject: ü\nContent-Type: text/html\n\n\xfc".encode("ascii", "replace")],
)
def test_what_is_in_ascii_is_not_touched(raw):
    message = Message.parse(raw)
    assert seven_bit.in_seven_bits(message) is message


def test_octets_in_a_header_stay():
    """8BITMIME speaks of bodies; nobody could tell the charset of a header."""
    raw = b"Subject: gr\xfc\xdfe\nFrom: J\xf6rg <j@x.example>\n\nplain\n"
    assert sent(raw) == raw


PARTS = """\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="=_a b"
Content-Transfer-Encoding: 8bit

This is for old readers: ü
--=_a b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

ü one
--=_a b--no
--=_a b \t
Content-Type: multipart/alternative; boundary=inner

--inner

plain
--inner
Content-Type: application/json
Content-Disposition: attachment; filename="ü.json"

{"a": "ü"}
--inner--
--=_a b
Content-Type: image/png
Content-Transfer-Encoding: base64

/+++
--=_a b--
behind: ü
"""


def test_parts_are_converted_one_by_one():
    raw = PARTS.encode()
    found = sent(raw)
    assert leaves(found) == leaves(raw)
    assert [one for one in found.split(b"\n") if not one.isascii()] == [
        'Content-Disposition: attachment; filename="ü.json"'.encode()
    ]
    expected = PARTS.replace("old readers: ü", "old readers: ??").replace("behind: ü", "behind: ??")
    expected = expected.replace("8bit\n\nThis", "7bit\n\nThis").replace(
        "8bit\n\nü one", "quoted-printable\n\n=C3=BC one"
    )
    expected = expected.replace("=_a b--no", "=3D_a b--no", 2).replace("=3D_a b--no", "=3D_a b--no")
    expected = expected.replace('ü.json"\n', 'ü.json"\nContent-Transfer-Encoding: quoted-printable\n')
    assert found.decode() == expected.replace('{"a": "ü"}', '{"a": "=C3=BC"}')


def test_a_message_within_is_converted_and_not_encoded_itself():
    """RFC 2045 section 6.4 forbids an encoding of message/rfc822."""
    raw = (
        "Content-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\n"
        "Subject: ü\nContent-Type: multipart/digest; boundary=d\n\n--d\n\nSubject: one\n\nü\n--d--\n"
    ).encode()
    assert sent(raw).decode() == (
        "Content-Type: message/rfc822\nMIME-Version: 1.0\nContent-Transfer-Encoding: 7bit\n\n"
        "Subject: ü\nContent-Type: multipart/digest; boundary=d\nMIME-Version: 1.0\n\n--d\n\nSubject: one\n"
        "MIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\n"
        "Content-Transfer-Encoding: quoted-printable\n\n=C3=BC\n--d--\n"
    )


def test_quoted_text_with_raw_octets_keeps_its_quoting():
    raw = TEXT + b"Content-Transfer-Encoding: Quoted-Printable\n\na=20\xfc=\n=C3=BC\n"
    assert sent(raw) == TEXT + b"Content-Transfer-Encoding: Quoted-Printable\n\na=20=FC=\n=C3=BC\n"


SIGNED = (
    "Content-Type: multipart/mixed; boundary=out\nMIME-Version: 1.0\n\n--out\n"
    "Content-Type: multipart/signed; boundary=in; protocol=x/y\n\n--in\n\nsigned {} \n--in\n\nsig\n--in--\n"
    "--out\n\nfooter ü\n--out--\n"
)


def test_what_is_signed_is_left_whole():
    raw = SIGNED.format("text").encode()
    found = sent(raw)
    assert SIGNED.format("text").split("--out")[1].encode() in found
    assert found.count(b"=C3=BC") == 1
    assert obstacle(SIGNED.format("tüxt").encode()) == "a signature covers its 8-bit text"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("Content-Type: multipart/mixed", "its parts cannot be told apart"),
        ("Content-Type: multipart/mixed; boundary=other", "its parts cannot be told apart"),
        ("Content-Type: multipart/mixed; boundary=ü", "its parts cannot be told apart"),
        (
            "Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=b",
            "a header in it is in doubt",
        ),
        ("Subject: no empty line\nhere the text begins", "a header in it is in doubt"),
        ("Content-Type: message/partial; number=1; id=x", "a part with 8-bit text is of a type that takes"),
        ("Content-Type: message/delivery-status", "a part with 8-bit text is of a type that takes"),
        ("Content-Transfer-Encoding: base64", "an encoding of a part does not hold what it says"),
        ("Content-Transfer-Encoding: x-uuencode", "an encoding of a part does not hold what it says"),
    ],
)
def test_what_cannot_be_converted_is_told(header, reason):
    assert obstacle(f"{header}\n\n--b\n\nü\n--b--\n".encode()).startswith(reason)


def test_there_are_bounds():
    # To read it whole would take the square of its length: minutes.
    endless = b"Content-Type: multipart/mixed; boundary=b" + b";" * 500_000
    assert obstacle(endless + b"\n\n--b\n\n\xfc\n--b--\n") == "a header in it is in doubt"
    assert obstacle(b"Content-Type: multipart/mixed; boundary=b\n" + b"\n--b\n\n\xfc" * 2000) == (
        "it has too many parts"
    )
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(30))
    assert obstacle(deep + b"\n\xfc\n") == "it has too many parts"
    assert obstacle(b"A: b\nContent-Type: message/rfc822\n\n" + b"X: y\n" * 300_000 + b"\n\xfc") == (
        "it has too many parts"
    )


def test_a_line_of_any_length_is_quoted(tmp_path):
    """From a file it comes in blocks."""
    line = "ü=".encode() * 100_000
    (tmp_path / "body").write_bytes(b"\n" + line + b"\nend\n")
    found = bytes(seven_bit.in_seven_bits(Message(TEXT, FileBody(tmp_path / "body", len(line) + 6))))
    assert leaves(found) == [("text/plain", line + b"\nend\n")]


LINES = [b"--a", b"--b", b"--a--", b"--b--", b"", b"text", b"\xfc ", b"x" * 20, b"\xff" * 5, b"\r", b"--"]
LINES += [b"Content-Type: multipart/x; boundary=%c" % one for one in b"ab"]
LINES += [b"Content-Type: message/rfc822", b"Content-Transfer-Encoding: 8bit"]


def merged(pieces):
    """Give what came piece by piece as if it had come at once."""
    groups = itertools.groupby(pieces, lambda piece: (piece.kind, piece.part.number))
    return [(key, b"".join(piece.data for piece in some)) for key, some in groups]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=30), st.integers(1, 40), st.sampled_from([b"\n", b"\r\n"]))
def test_pieces_are_the_message_however_it_is_cut(lines, size, end):
    raw = b"Content-Type: multipart/x; boundary=a\n" + end.join(lines)
    cut = [raw[at : at + size] for at in range(0, len(raw), size)]
    found = merged(mime.walk(cut))
    assert found == merged(mime.walk([raw]))
    assert b"".join(data for _, data in found) == raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        after = b"".join(seven_bit.converted(cut, seven_bit.to_convert(cut)))
    except seven_bit.Unconvertible:
        return
    assert all(kind == "header" or data.isascii() for kind, data, _ in mime.walk([after]))


TEXTS = [b"plain", b"gr\xc3\xbc\xdf ", b"", b".", b"--", b"--b1x", b"\xff" * 90, b"tab\t", b"x" * 100, b"=20"]
HEADERS = [
    b"Content-Type: text/html; charset=koi8-r\n",
    b'Content-Type: text/plain;\n\tcharset="x-none"\n',
    b"",
]
HEADERS += [b"Content-Transfer-Encoding: 8bit\nContent-Type: application/x\n"]


def multipart(parts):
    """Make one whose boundary stands in none of its parts."""
    mark = b"b%d" % len(b"".join(parts))
    body = b"".join(b"--%s\n%s\n" % (mark, part) for part in parts)
    return b"Content-Type: multipart/mixed; boundary=%s\n\n%s--%s--\n" % (mark, body, mark)


LEAVES = st.tuples(st.sampled_from(HEADERS), st.lists(st.sampled_from(TEXTS), max_size=5)).map(
    lambda both: both[0] + b"\n" + b"\n".join(both[1])
)
TREES = st.recursive(
    LEAVES,
    lambda some: st.one_of(
        st.lists(some, min_size=1, max_size=3).map(multipart),
        some.map(lambda one: b"Content-Type: message/rfc822\n\nSubject: \xe9\n" + one),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_every_part_says_the_same(tree):
    found = sent(b"Subject: x\n" + tree)
    assert leaves(found) == leaves(tree)
    assert all(kind == "header" or data.isascii() for kind, data, _ in mime.walk([found]))


# The hosts


def delivery(message):
    rows = (EntryRecipient(0, Recipient.of("u@x.example")),)
    entry = Entry("entry-1", Address("s@me.example"), message, list(rows), 0.0)
    return Delivery("delivery-1", entry, Route("remote", "remote"), rows, entry.sender)


@pytest.fixture
async def deliver(chain_of):
    """Give `deliver(message, *hosts)`: its outcome."""
    chains = []

    async def give(message, *hosts):
        names = ", ".join(f'"127.0.0.1:{host.port}"' for host in hosts)
        chains.append(chain_of(f'remote: {{routes: {{"": {{hosts: [{names}]}}}}}}\n', "remote"))
        answer = await chains[-1].ask_plugin("remote", Stages.deliver, delivery(message))
        assert not answer.failed, chains[-1].emitted
        return answer.value[0]

    yield give
    for chain in chains:
        await chain.ask_plugin("remote", Stages.shutdown)


KNOWS = {"EHLO": "250-x\r\n250 8BITMIME"}
STUCK = Message.parse(SIGNED.format("tüxt").encode())


@pytest.mark.parametrize("script", [{}, {"EHLO": "500 what"}])
async def test_a_host_without_8bitmime_gets_seven_bits(deliver, script):
    async with ScriptedHost(script) as host:
        outcome = await deliver(Message.parse(TEXT + "\n.ü\n".encode()), host)
    assert outcome.result == "delivered"
    assert host.contents == [
        TEXT.replace(b"\n", b"\r\n") + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n..=C3=BC\r\n"
    ]
    assert "MAIL FROM:<s@me.example>" in host.commands


async def test_a_body_on_disk_is_converted(deliver, tmp_path):
    (tmp_path / "body").write_bytes(b"\n" + "ü\n".encode() * 100_000)
    async with ScriptedHost() as host:
        await deliver(Message(TEXT, FileBody(tmp_path / "body", 300_001)), host)
    assert leaves(host.contents[0]) == [("text/plain", "ü\r\n".encode() * 100_000)]


async def test_what_cannot_be_converted_goes_to_a_host_that_takes_it(deliver):
    async with ScriptedHost() as one, ScriptedHost(KNOWS) as other:
        outcome = await deliver(STUCK, one, other)
    assert outcome.result == "delivered"
    assert (one.commands, one.contents) == (["EHLO mx.example", "QUIT"], [])
    assert "tüxt".encode() in other.contents[0]


async def test_where_no_host_takes_it_the_sender_is_told_why(deliver):
    async with ScriptedHost() as host:
        outcome = await deliver(STUCK, host)
        assert (outcome.result, outcome.status) == ("failed", "5.6.3")
        assert "no 8-bit text (8BITMIME), and a signature covers its 8-bit text" in outcome.text
        outcome = await deliver(STUCK, host, await dead())
    assert outcome.result == "deferred"


async def dead():
    """Give a host that is not there: another time it may take the message."""
    async with ScriptedHost() as host:
        return host


async def test_a_body_that_is_gone_is_tried_again(deliver, tmp_path):
    async with ScriptedHost() as host:
        outcome = await deliver(Message(b"", FileBody(tmp_path / "absent", 10)), host)
    assert (outcome.result, outcome.status) == ("deferred", "4.3.0")


async def test_a_host_with_8bitmime_gets_the_message_unread(deliver, monkeypatch):
    monkeypatch.setattr(asyncio, "to_thread", None)
    async with ScriptedHost(KNOWS) as host:
        outcome = await deliver(Message.parse(TEXT + "\nü\n".encode()), host)
    assert outcome.result == "delivered"
    assert host.contents[0].endswith("\r\n\r\nü\r\n".encode())
