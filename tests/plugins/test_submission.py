"""submission: a login's senders, and the fields that submitted mail lacks."""

import pytest

from gateway import Message, Reject, Stages
from gateway.testing.build import session as session_of
from gateway.testing.build import transaction as transaction_of

CONF = """\
submission:
  domains: [example.org, example.net]
  senders: {joe: [sales@example.org, "@Shop.example"], robot: ["*"], "ann@example.com": []}
"""


async def mail(chain, sender, user, protocol="submission"):
    session = session_of(user=user)
    session.protocol = protocol
    return (await chain.ask(Stages.mail, transaction_of(sender, session=session))).value


@pytest.mark.parametrize(
    ("user", "sender"),
    [
        ("joe", "joe@example.org"),
        ("joe", "JOE@EXAMPLE.NET"),
        ("Joe", "joe@example.org"),
        ("joe", "Sales@Example.Org"),
        ("joe", "anybody@shop.example"),
        ("joe", ""),
        ("ann@example.com", "ann@example.com"),
        ("Ann@Example.com", "Ann@example.com"),
        ("robot", "anybody@anywhere.example"),
        ("", "anybody@anywhere.example"),
    ],
)
async def test_own_senders_go_through(chain_of, user, sender):
    assert await mail(chain_of(CONF, "submission"), sender, user) is None


@pytest.mark.parametrize(
    ("user", "sender"),
    [
        ("joe", "ann@example.org"),
        ("joe", "joe@example.com"),
        ("joe", "joe"),
        ("joe", "joel@example.org"),
        ("joe", "joe-manager@example.org"),
        ("ann@example.com", "ann-x@example.com"),
        ("joe", "x@sub.shop.example"),
        ("joe", "ann@example.org@evil.example"),
        ("joe", "joe@example.org.evil.example"),
        ("ann@example.com", "ann@example.org"),
        ("ann@example.com", "ann@example.com@example.org"),
        ("nobody", "joe@example.org"),
    ],
)
@pytest.mark.parametrize("protocol", ["smtp", "submission", "lmtp"])
async def test_others_are_refused(chain_of, user, sender, protocol):
    said = await mail(chain_of(CONF, "submission"), sender, user, protocol)
    assert (type(said), said.status, said.reason) == (Reject, "5.7.1", "sender_login")
    assert user not in said.text


@pytest.mark.parametrize(
    ("user", "sender", "own"),
    [
        ("joe", "joe@example.org", True),
        ("joe", "joe-lists-owner@example.org", True),
        ("Ann@Example.com", "ann-x@example.com", True),
        ("joe", "joel@example.org", False),
        ("joe", "joe-list@example.com", False),
        ("joe-list", "joe@example.org", False),
    ],
)
async def test_extensions_are_a_logins_own_where_the_site_says_so(chain_of, user, sender, own):
    chain = chain_of(f"{CONF}  extensions: true\n", "submission")
    assert (await mail(chain, sender, user) is None) is own


async def test_match_can_be_given_up_and_the_host_is_the_domain(chain_of):
    loose = chain_of("submission: {match: false}", "submission")
    assert await mail(loose, "ann@example.org", "joe") is None
    plain = chain_of("", "submission")
    assert await mail(plain, "joe@mx.example", "joe") is None
    assert await mail(plain, "joe@example.org", "joe") is not None


async def incoming(chain, raw, origin="submission"):
    message = Message.parse(raw)
    one = transaction_of(session=session_of(), origin=origin)
    return one, bytes((await chain.transform(Stages.incoming, one, message)).value or message)


async def test_what_is_missing_is_put_in(chain_of):
    chain = chain_of("", "submission")
    one, raw = await incoming(chain, b"Subject: x\n\nbody\n")
    date = b"Date: Tue, 14 Nov 2023 22:13:20 +0000\n"
    assert raw == b"Subject: x\n" + date + b"Message-ID: <" + one.id.encode() + b"@mx.example>\n\nbody\n"


@pytest.mark.parametrize("origin", ["smtp", "lmtp", "forward", "submission"])
async def test_what_is_there_stays_and_others_mail_is_left_alone(chain_of, origin):
    whole = b"date: long ago\nMESSAGE-ID: <x@y>\n\nbody\n"
    raw = whole if origin == "submission" else b"Subject: x\n\nbody\n"
    assert (await incoming(chain_of("", "submission"), raw, origin))[1] == raw
