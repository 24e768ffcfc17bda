"""bounces: QSBMF, and what hostile reports and large originals do to it."""

import pytest

from gateway.address import Address
from gateway.envelope import Entry, Failure, Recipient
from gateway.hookspecs import Stages
from gateway.message import FileBody, Message


@pytest.fixture
def bounce(chain_of, clock):
    """Give `bounce(failures, yaml, sender, message)`: the Birth."""

    async def make(*failures, yaml="bounces: {}", sender="s@remote.example", message=None):
        chain = chain_of(yaml, "bounces")
        entry = Entry("1", Address(sender), message or Message(b"A: b\n", b"\nbody\n"), [], clock.time())
        return (await chain.ask(Stages.bounce, entry, list(failures))).value

    return make


def failure(text="no\n", address="r@x.example", **more):
    return Failure(Recipient.of(address, **more), text)


def paragraphs(birth):
    body = bytes(birth.message).split(b"\n\n")
    return [one for one in body[2:] if one.startswith(b"<")]


async def test_layout(bounce):
    birth = await bounce(failure())
    text = bytes(birth.message)
    assert text.startswith(
        b"Date: Tue, 14 Nov 2023 22:13:20 -0000\nFrom: MAILER-DAEMON@mx.example\nTo: s@remote.example\n"
    )
    assert b"\nSubject: failure notice\n\nHi. This is the" in text
    assert b"\n\n<r@x.example>:\nno\n\n---" in text
    assert text.endswith(b"\n\nReturn-Path: <s@remote.example>\nA: b\n\nbody\n")
    assert (birth.sender, birth.recipients, birth.origin) == ("", ("s@remote.example",), "bounce")


@pytest.mark.parametrize("report", ["a\n\n--- x\n\nb", "\n\n\n- x", "a\n\0\n<x@y>:\n", "\n\n"])
async def test_no_report_forges_structure(bounce, report):
    birth = await bounce(failure(report), failure("last\n"))
    text = bytes(birth.message)
    told = text.split(b"\n\n", 2)[2].split(b"\n\n--- A copy")[0]
    found = [one for one in told.split(b"\n\n") if one.strip(b"\n")]
    assert len(found) == 2
    assert found[1] == b"<r@x.example>:\nlast"
    assert b"\0" not in text


async def test_no_address_forges_structure(bounce):
    birth = await bounce(failure(address="a\n\n---\n@x.example"), sender="a\nBcc: v@x\n@remote.example")
    assert [name for name, _ in birth.message.fields()] == ["Date", "From", "To", "Subject"]
    assert b"<a__---_@x.example>:\n" in bytes(birth.message)


async def test_bytes_that_are_no_utf_8_stay(bounce):
    birth = await bounce(failure(b"\xe9\n".decode("utf-8", "surrogateescape")))
    assert b"<r@x.example>:\n\xe9\n" in bytes(birth.message)


async def test_recipients_are_shown_as_the_sender_knows_them(bounce):
    domain = Recipient(
        Address("abc-r@v.example"), Address("r@v.example"), "virtual_domains", "f:4: v.example -> abc"
    )
    user = Recipient(
        Address("joe-u@v.example"), Address("u@v.example"), "virtual_domains", "f:5: u@v.example -> joe"
    )
    short = Recipient(Address("noat@mx.example"), Address("noat"))
    birth = await bounce(*(Failure(one, "no\n") for one in (domain, user, short)))
    names = [one.partition(b":")[0] for one in paragraphs(birth)]
    assert names == [b"<r@v.example>", b"<joe-u@v.example>", b"<noat@mx.example>"]


async def test_double_bounce(bounce):
    birth = await bounce(failure(), sender="")
    assert (birth.sender, birth.recipients) == ("#@[]", ("postmaster@mx.example",))
    assert b"\nReturn-Path: <>\n" in bytes(birth.message)
    birth = await bounce(failure(), sender="", yaml="bounces: {double_bounce_to: dead@y.example}")
    assert birth.recipients == ("dead@y.example",)


async def test_never_a_third(bounce):
    assert await bounce(failure(), sender="#@[]") is None


async def test_verp_is_undone(bounce):
    birth = await bounce(failure(), sender="list-@h.example-@[]")
    assert birth.recipients == ("list-@h.example",)
    assert b"Return-Path: <list-@h.example>\n" in bytes(birth.message)


async def test_a_large_original_comes_without_its_body(bounce, tmp_path):
    """The body is not even there: it must not be read."""
    message = Message(b"A: b\n", FileBody(tmp_path / "absent", 50_000_000))
    birth = await bounce(failure(), message=message)
    assert bytes(birth.message).endswith(b"Return-Path: <s@remote.example>\nA: b\n")
    assert b"--- The header" in bytes(birth.message)


async def test_the_limit_is_a_setting(bounce, tmp_path):
    path = tmp_path / "body"
    path.write_bytes(b"\n" + b"z" * 2_000_000)
    message = Message(b"A: b\n", FileBody(path, 2_000_001))
    birth = await bounce(failure(), message=message, yaml="bounces: {original_limit: 3M}")
    assert bytes(birth.message).endswith(b"A: b\n\n" + b"z" * 2_000_000)
