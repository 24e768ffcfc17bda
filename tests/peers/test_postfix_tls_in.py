"""Postfix as the TLS client to us: by its own levels, by DANE, and by MTA-STS, which a resolver knows for it.

It verifies the certificate that we show for the name that it asks for (SNI); where none fits, no mail comes.
"""

import os
import subprocess
from contextlib import ExitStack

import pytest
from cryptography import x509
from internet import ENFORCE, WEB, WRONG, Inside, Internet, tlsa
from peer import Gateway, eventually, folder_of, program

pytestmark = [
    pytest.mark.peer("postfix"),
    pytest.mark.peer("postfix-mta-sts-resolver"),
    pytest.mark.peer("knot"),
    pytest.mark.peer("unbound"),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network"),
]

OURS, STS_PORT = "198.51.100.24", 8461
#: What our certificates name. The first is shown to those who ask for no name, or for one that we have not.
NAMES = [
    ("mx.plain.example", "listed.plain.example"),
    ("unlisted.plain.example",),
    ("mx.signed.example", "mx-ta.signed.example"),
]
CONF = """\
listeners: [{{name: mx25, protocol: smtp, address: "{ours}:25", tls: required}}]
tls: {{certificates: [{certificates}]}}
rcpthosts: {{domains: [{domains}]}}
virtual_domains: {{domains: {{{virtual}}}}}
"""
POSTFIX = """\
relayhost =
smtpd_sender_restrictions =
virtual_mailbox_domains =
smtp_dns_support_level = dnssec
smtp_tls_CAfile = {authority}
smtp_tls_loglevel = 1
smtp_tls_policy_maps = inline:{{ {levels} }}, socketmap:inet:127.0.0.1:{sts}:postfix
"""
STS = "host: 127.0.0.1\nport: {port}\ncache: {{type: internal}}\n"
PLAIN = f"""\
    @ MX 10 mx
    encrypt MX 10 mx
    verify MX 10 mx
    never MX 10 mx
    stranger MX 10 other
    careless MX 10 other
    sts MX 10 listed
    _mta-sts.sts TXT "v=STSv1; id=1;"
    mta-sts.sts A {WEB}
    bad MX 10 unlisted
    _mta-sts.bad TXT "v=STSv1; id=1;"
    mta-sts.bad A {WEB}
    mx A {OURS}
    other A {OURS}
    listed A {OURS}
    unlisted A {OURS}
    """
#: The host of the domain itself is about to have another key, or has got one.
SIGNED = f"""\
    @ MX 10 mx
    mx A {OURS}
    _25._tcp.mx {{leaf}}
    _25._tcp.mx {WRONG}
    ta MX 10 mx-ta
    mx-ta A {OURS}
    _25._tcp.mx-ta {{authority}}
    name MX 10 other
    other A {OURS}
    _25._tcp.other {{authority}}
    wrong MX 10 mx-wrong
    mx-wrong A {OURS}
    _25._tcp.mx-wrong {WRONG}
    none MX 10 mx-none
    mx-none A {OURS}
    """
UNFIT = "Server certificate not verified"
#: Domain -> Postfix's level (none of its own where MTA-STS is to say), what becomes of its mail, and how.
FATES = {
    "encrypt.plain.example": ("encrypt", "sent", "Trusted"),
    "careless.plain.example": ("encrypt", "sent", "Trusted"),
    "verify.plain.example": ("verify", "sent", "Verified"),
    "stranger.plain.example": ("verify", "deferred", UNFIT),
    "never.plain.example": ("none", "bounced", "530 5.7.0"),
    "sts.plain.example": ("", "sent", "Verified"),
    "bad.plain.example": ("", "deferred", UNFIT),
    "signed.example": ("dane-only", "sent", "Verified"),
    "ta.signed.example": ("dane-only", "sent", "Verified"),
    "name.signed.example": ("dane-only", "deferred", UNFIT),
    "wrong.signed.example": ("dane-only", "deferred", UNFIT),
    "none.signed.example": ("dane-only", "deferred", "no TLSA records found"),
    "plain.example": ("dane-only", "deferred", "non DNSSEC destination"),
}


class Sender(Inside):
    """A Postfix that takes mail for everybody at loopback and looks in the DNS where it goes."""

    def __init__(self, folder, internet):
        super().__init__(folder, internet)
        levels = ", ".join(f"{{ {domain} = {level} }}" for domain, (level, *_) in FATES.items() if level)
        settings = POSTFIX.format(authority=internet.folder / "ca.pem", levels=levels, sts=STS_PORT)
        words = [program("postconf"), "-c", folder / "config", "-e", *settings.splitlines()]
        subprocess.run(words, check=True)

    def attempt(self, recipient):
        """Wait for the end of the first attempt; gives the log's lines of TLS before it, and its own."""

        def ended():
            lines = self.log.splitlines()
            ends = [number for number, line in enumerate(lines) if f"to=<{recipient}>" in line]
            return lines[: ends[0] + 1] if ends else None

        *before, told = eventually(ended)
        return [line for line in before if "TLS connection established to" in line], told


def certify(gateway, authority):
    """Give the gateway its certificates, with the authority's behind each; gives the settings for them."""
    leaves, named = [authority.issue_cert(*names) for names in NAMES], []
    for number, leaf in enumerate(leaves):
        file = gateway.folder / f"{number}.pem"
        parts = [leaf.private_key_pem, *leaf.cert_chain_pems, authority.cert_pem]
        file.write_bytes(b"".join(one.bytes() for one in parts))
        named.append(f"{{certificate: {file}, key: {file}}}")
    virtual = ", ".join(f"{domain}: abc" for domain in FATES)
    conf = CONF.format(ours=OURS, certificates=", ".join(named), domains=", ".join(FATES), virtual=virtual)
    gateway.configure("40-tls.yaml", conf)
    return x509.load_pem_x509_certificate(leaves[-1].cert_chain_pems[0].bytes())


@pytest.fixture(scope="module")
def world():
    """Give the internet, and a gateway and a Postfix in it."""
    with ExitStack() as stack:
        internet = Internet(folder_of(stack), stack)
        gateway = Gateway(folder_of(stack))
        leaf = certify(gateway, internet.authority)
        authority = x509.load_pem_x509_certificate(internet.authority.cert_pem.bytes())
        signed = SIGNED.format(leaf=tlsa(leaf, 3), authority=tlsa(authority, 2))
        internet.publish({"signed.example": signed}, {"plain.example": PLAIN}, {})
        internet.web(
            sts_plain_example=ENFORCE.format("listed.plain.example"),
            bad_plain_example=ENFORCE.format("listed.plain.example"),
        )
        (internet.folder / "sts.yml").write_text(STS.format(port=STS_PORT))
        trust = f"SSL_CERT_FILE={internet.folder}/ca.pem"
        internet.start("env", trust, program("mta-sts-daemon"), "-c", internet.folder / "sts.yml")
        eventually(lambda: internet.listens("127.0.0.1", STS_PORT))
        stack.callback(gateway.stop)
        gateway.start(within=internet.within)
        postfix = Sender(folder_of(stack), internet)
        stack.callback(postfix.stop)
        postfix.start()
        yield internet, gateway, postfix


@pytest.mark.parametrize("domain", FATES)
def test_what_becomes_of_its_mail(world, domain):
    internet, gateway, postfix = world
    _, status, how = FATES[domain]
    recipient = f"u@{domain}"
    internet.send(postfix.port, recipient, sender="")
    connections, told = postfix.attempt(recipient)
    assert f"status={status} " in told
    if status == "sent":
        (message,) = gateway.received(1, having=f"for {recipient}\n")
        assert b" with ESMTPS" in message
        assert f": {how} TLS connection established to " in connections[-1]
    else:
        assert how in told
