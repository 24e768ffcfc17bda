"""What EHLO offers, as real sessions use it: REQUIRETLS, SMTPUTF8, CHUNKING, submission's header, senders."""

import base64
import smtplib
import ssl

import pytest

RELAY = "relay_control: {clients: [127.0.0.1]}\n"


@pytest.fixture
def trust(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def session(serve, trust):
    """Give `session(keys, yaml, protocol, tls=True)`: the gateway and a client of it."""
    clients = []

    def start(*args, tls=True):
        gateway = serve(*args)
        client = smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=10)
        clients.append(client)
        client.ehlo()
        if tls:
            client._host = "mail.example.org"
            client.starttls(context=trust)
            client.ehlo()
        return gateway, client

    yield start
    for client in clients:
        client.close()


def test_requiretls_is_offered_under_tls_alone_and_kept(session):
    gateway, client = session("", RELAY)
    assert client.has_extn("REQUIRETLS")
    assert client.docmd("MAIL FROM:<s@x.example> REQUIRETLS")[0] == 250
    assert client.rcpt("friend@elsewhere.example")[0] == 250
    assert client.data(b"Subject: secret\r\n\r\nx\r\n")[0] == 250
    # The host behind knows no TLS, so nothing goes there.
    (told,) = gateway.wait_for("delivery.deferred")
    assert told["status"] == "4.7.4"
    _, plain = session("", RELAY, tls=False)
    assert not plain.has_extn("REQUIRETLS")
    assert plain.docmd("MAIL FROM:<s@x.example> REQUIRETLS")[0] == 555


def test_content_by_bdat_goes_on_byte_for_byte(session):
    gateway, client = session("", RELAY, tls=False)
    assert client.docmd("MAIL FROM:<s@x.example> BODY=8BITMIME")[0] == 250
    assert client.docmd("RCPT TO:<friend@elsewhere.example>")[0] == 250
    for chunk, last in (("Subject: x\r\n\r", ""), ("\n.\r\n..é\r\nen", ""), ("d", " LAST")):
        raw = chunk.encode()
        client.send(b"BDAT %d%s\r\n" % (len(raw), last.encode()) + raw)
        assert client.getreply()[0] == 250
    assert gateway.arrived().replace(b"\r\n", b"\n").endswith("\n\n.\n..é\nend\n".encode())


def log_in(client):
    return client.docmd("AUTH PLAIN " + base64.b64encode(b"\0ann@example.org\0secret").decode())[0]


def test_submission_completes_the_header_and_knows_whose_address_is_whose(session):
    gateway, client = session("", "", "submission")
    assert client.docmd("MAIL FROM:<ann@example.org>")[0] == 530
    assert log_in(client) == 235
    code, said = client.docmd("MAIL FROM:<bob@example.org>")
    assert (code, said) == (553, b"5.7.1 this sender is not an address of your login")
    assert gateway.wait_for("sender.refused")[0]["reason"] == "sender_login"
    client.sendmail("ann@example.org", ["friend@elsewhere.example"], b"Subject: x\r\n\r\nx\r\n")
    sent = gateway.arrived()
    assert b"\nDate: " in sent
    assert b"\nMessage-ID: <" in sent
    assert b"with ESMTPSA" in sent
