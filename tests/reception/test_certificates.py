"""Certificates while the gateway runs: renewed ones, and those that clients show."""

import smtplib
import ssl

import pytest
from cryptography import x509

from gateway import serving
from gateway.smtp.tls import fingerprint

RELAY = """\
tls: !replace {{certificates: [{{certificate: mx.pem, key: mx.pem}}], client_ca: ca.pem}}
relay_control: !replace {{certificates: ["{shown}"]}}
"""


def shown_to(client):
    """Give the serial number of the certificate that a client sees."""
    return x509.load_der_x509_certificate(client.sock.getpeercert(binary_form=True)).serial_number


def connect(gateway, trust):
    client = smtplib.SMTP(timeout=10)
    client.connect("127.0.0.1", gateway.port)
    client._host = "mail.example.org"  # smtplib asks for the certificate of this name
    client.starttls(context=trust)
    client.ehlo("client.example")
    return client


@pytest.fixture
def trust(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_a_renewed_certificate_counts_for_the_next_session_and_cuts_none(
    gateways, serve, trust, authority, monkeypatch
):
    monkeypatch.setattr(serving, "LOOK", 0.05)
    gateway = serve(yaml="locals: {domains: [renewal.example]}\n")
    base = gateways("", "locals: {domains: [renewal.example]}\n", "smtp", "").base
    with connect(gateway, trust) as before:
        old = shown_to(before)
        authority.issue_cert("mail.example.org").private_key_and_cert_chain_pem.write_to_path(base / "mx.pem")
        gateway.wait_for("tls.certificate_loaded")
        with connect(gateway, trust) as after:
            assert shown_to(after) != old
        assert before.docmd("NOOP")[0] == 250


@pytest.mark.parametrize(("named", "code"), [(True, 250), (False, 553)])
def test_a_client_relays_by_its_certificate(named, code, relaying, trust, authority):
    theirs = authority.issue_cert("client.example.org")
    theirs.configure_cert(trust)
    der = ssl.PEM_cert_to_DER_cert(theirs.cert_chain_pems[0].bytes().decode())
    gateway = relaying(fingerprint(der) if named else "00:" * 31 + "00")
    with connect(gateway, trust) as client:
        assert client.docmd("MAIL FROM:<a@example.com>")[0] == 250
        assert client.docmd("RCPT TO:<friend@elsewhere.example>")[0] == code
    assert gateway.wait_for("tls.established")[0]["verified"] == "certificate"


def test_the_certificate_of_who_says_xclient_is_not_the_clients(relaying, trust, authority):
    theirs = authority.issue_cert("proxy.example.org")
    theirs.configure_cert(trust)
    der = ssl.PEM_cert_to_DER_cert(theirs.cert_chain_pems[0].bytes().decode())
    gateway = relaying(fingerprint(der), "xclient: [127.0.0.1]")
    with connect(gateway, trust) as client:
        assert client.docmd("XCLIENT ADDR=203.0.113.9")[0] == 220
        client.ehlo("client.example")
        # The wire is what it was.
        assert client.has_extn("REQUIRETLS")
        assert not client.has_extn("STARTTLS")
        assert client.docmd("MAIL FROM:<a@example.com>")[0] == 250
        assert client.docmd("RCPT TO:<friend@elsewhere.example>")[0] == 553


@pytest.fixture
def relaying(serve, authority, tmp_path):
    """Give `relaying(fingerprint)`: a gateway that lets the client with this certificate relay."""

    def start(shown, keys=""):
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        yaml = RELAY.format(shown=shown).replace("ca.pem", str(tmp_path / "ca.pem"))
        return serve(keys, yaml.replace("!replace ", "", 1), without="tls")

    return start
