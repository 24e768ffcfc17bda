"""Our mail to a Postfix by DANE and by MTA-STS, over a signed zone and a resolver that validates it."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from internet import ENFORCE, MAIL, WEB, WRONG, Internet, MailHost, tlsa
from peer import Gateway, eventually

pytestmark = [
    pytest.mark.peer("postfix"),
    pytest.mark.peer("knot"),
    pytest.mark.peer("unbound"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network"),
]

DOMAINS = ("signed.example", "plain.example", "bogus.example")
NAMES = ("mx.signed.example", "mx-ta.signed.example", "mx.plain.example", "listed.plain.example")


def signed_zone(postfix):
    leaf, authority = postfix.certificate(), postfix.certificate(-1)
    return f"""\
        @ MX 10 mx
        mx A {MAIL}
        _25._tcp.mx {tlsa(leaf, 3)}
        ta MX 10 mx-ta
        mx-ta A {MAIL}
        _25._tcp.mx-ta {tlsa(authority, 2)}
        name MX 10 other
        other A {MAIL}
        _25._tcp.other {tlsa(authority, 2)}
        wrong MX 10 mx-wrong
        mx-wrong A {MAIL}
        _25._tcp.mx-wrong {WRONG}
        fail MX 10 mx-wrong
        fail MX 20 mx
        alias MX 10 mx-alias
        mx-alias CNAME mx
        none MX 10 mx-none
        mx-none A {MAIL}
        both MX 10 mx-wrong
        _mta-sts.both TXT "v=STSv1; id=1;"
        mta-sts.both A {WEB}
        """


PLAIN = f"""\
    @ MX 10 mx
    mx A {MAIL}
    _25._tcp.mx {WRONG}
    sts MX 10 listed
    listed A {MAIL}
    _mta-sts.sts TXT "v=STSv1; id=1;"
    mta-sts.sts A {WEB}
    bad MX 10 unlisted
    unlisted A {MAIL}
    _mta-sts.bad TXT "v=STSv1; id=1;"
    mta-sts.bad A {WEB}
    stranger MX 10 stranger-mx
    stranger-mx A {MAIL}
    _mta-sts.stranger TXT "v=STSv1; id=1;"
    mta-sts.stranger A {WEB}
    """

BOGUS = f"""\
    @ MX 10 mx
    mx A {MAIL}
    """

#: Domain -> what becomes of mail: the way that is told, or what failed.
FATES = {
    "signed.example": ("delivered", "dane"),
    "ta.signed.example": ("delivered", "dane"),
    "name.signed.example": ("deferred", "certificate-host-mismatch"),
    "wrong.signed.example": ("deferred", "validation-failure"),
    "fail.signed.example": ("delivered", "dane"),
    "alias.signed.example": ("delivered", "dane"),
    "none.signed.example": ("delivered", ""),
    "plain.example": ("delivered", ""),
    "bogus.example": ("deferred", None),
    "sts.plain.example": ("delivered", "webpki"),
    "bad.plain.example": ("deferred", "validation-failure"),
    "stranger.plain.example": ("deferred", "certificate-host-mismatch"),
    # The policy would let it pass, the TLSA record does not.
    "both.signed.example": ("deferred", "validation-failure"),
}


@pytest.fixture(scope="module")
def world():
    """Give the internet, and a gateway and a Postfix in it."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))) for _ in range(3)]
        for folder in folders:
            folder.chmod(0o755)
        internet = Internet(folders[0], stack)
        postfix = MailHost(folders[1], internet, [*FATES, *DOMAINS], *NAMES)
        internet.publish(
            {"signed.example": signed_zone(postfix)}, {"plain.example": PLAIN}, {"bogus.example": BOGUS}
        )
        internet.web(
            sts_plain_example=ENFORCE.format("*.plain.example"),
            bad_plain_example=ENFORCE.format("listed.plain.example"),
            stranger_plain_example=ENFORCE.format("stranger-mx.plain.example"),
            both_signed_example=ENFORCE.format("mx-wrong.signed.example"),
        )
        gateway = Gateway(folders[2])
        gateway.configure("40-remote.yaml", f"remote: {{tls: mta-sts, ca_file: {folders[0]}/ca.pem}}\n")
        stack.callback(postfix.stop)
        postfix.start()
        stack.callback(gateway.stop)
        gateway.start(within=internet.within)
        yield internet, gateway, postfix


@pytest.mark.parametrize("domain", FATES)
def test_what_becomes_of_mail(world, domain):
    internet, gateway, postfix = world
    result, told = FATES[domain]
    recipient = f"u@{domain}"
    internet.send(gateway.port, recipient)
    names = ("delivery.delivered", "delivery.deferred", "delivery.failed")
    (event, *_) = eventually(lambda: gateway.events(recipient, *names))
    assert event["event"] == f"delivery.{result}", event
    if result == "delivered":
        postfix.received("all", f"for {recipient}\n")
    assert bool(postfix.taken("all", f"for {recipient}\n")) == (result == "delivered")
    about = [
        one for one in gateway.events(domain, "tls.established", "tls.failed") if one.get("domain") == domain
    ]
    if result == "delivered":
        assert about[-1]["event"] == "tls.established"
        assert about[-1].get("verified", "") == told
    else:
        assert [one.get("result_type") for one in about] == ([told] if told else [])


@pytest.mark.parametrize("domain", [name for name, fate in FATES.items() if fate[1] == "validation-failure"])
def test_a_sender_may_have_it_arrive_all_the_same(world, domain):
    """RFC 8689 section 5: neither DANE nor MTA-STS keeps such a message."""
    internet, gateway, postfix = world
    internet.send(gateway.port, f"open@{domain}", field="TLS-Required: No")
    kept = postfix.received("all", f"for open@{domain}\n")
    assert b"(using TLS" in kept


def test_a_host_that_fails_is_told_with_what_a_report_needs(world):
    internet, gateway, _ = world
    internet.send(gateway.port, "report@wrong.signed.example")
    (event, *_) = eventually(
        lambda: [
            one
            for one in gateway.events("wrong.signed.example", "tls.failed")
            if one["domain"].startswith("wrong")
        ]
    )
    assert event["policy_type"] == "tlsa"
    assert event["peer"] == f"mx-wrong.signed.example[{MAIL}]:25"
    assert event["result_type"] == "validation-failure"
