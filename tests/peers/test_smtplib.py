"""Python's smtplib sends, Python's mailbox reads."""

import smtplib
from email.message import EmailMessage

import pytest
from peer import body, wire


@pytest.fixture
def client(gateway):
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as one:
        one.ehlo()
        yield one


def test_a_message_is_read_back_as_it_was_written(gateway, client):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@sender.example", "bob@example.org", "smtplib 1"
    message.set_content("Grüße\n.\n..\n")
    assert client.send_message(message) == {}
    gateway.received(1, having="smtplib 1")
    (read,) = [one for one in gateway.maildir() if one["Subject"] == "smtplib 1"]
    assert read["Return-Path"] == "<ann@sender.example>"
    assert read["Delivered-To"] == "abc-bob@example.org"
    assert read.get_payload(decode=True).decode() == "Grüße\n.\n..\n"


def test_eight_bit_text_comes_through_byte_for_byte(gateway, client):
    content = b"Subject: smtplib 2\n\n" + body(3000)
    assert "8bitmime" in client.esmtp_features
    client.sendmail("ann@sender.example", ["bob@example.org"], wire(content), ["BODY=8BITMIME"])
    (kept,) = gateway.received(1, having="smtplib 2")
    assert kept.endswith(b"\n" + content)


def test_international_addresses(gateway, client):
    content = "Subject: smtplib 3, für Jörg\n\nGrüße\n".encode()
    client.sendmail(
        "ärger@sender.example", ["jörg@example.org"], wire(content), ["SMTPUTF8", "BODY=8BITMIME"]
    )
    (kept,) = gateway.received(1, having="smtplib 3")
    assert kept.endswith(content)
    # qmail quotes a local part that is not ASCII.
    assert kept.startswith('Return-Path: <"ärger"@sender.example>\n'.encode())
    assert "\nDelivered-To: abc-jörg@example.org\n".encode() in kept


def test_an_international_address_needs_its_extension(client):
    client.mail("ann@sender.example")
    client.command_encoding = "utf-8"
    client.putcmd("RCPT TO:<jörg@example.org>")
    assert client.getreply()[0] // 100 == 5


def test_one_of_many_recipients_is_refused(gateway, client):
    """All commands in one packet, as RFC 2920 allows; the others get the message."""
    assert "pipelining" in client.esmtp_features
    recipients = ["one@example.org", "two@elsewhere.example", "three@example.net"]
    with smtplib.SMTP("127.0.0.1", gateway.port, "far.example", 20, ("127.0.0.2", 0)) as far:
        far.ehlo()
        lines = ["MAIL FROM:<ann@sender.example>", *(f"RCPT TO:<{one}>" for one in recipients), "DATA"]
        far.send("".join(f"{line}\r\n" for line in lines))
        replies = [far.getreply() for _ in lines]
        assert [code for code, _ in replies] == [250, 250, 553, 250, 354]
        assert replies[2][1].startswith(b"5.7.1 ")
        far.send("Subject: smtplib 4\r\n\r\nx\r\n.\r\n")
        assert far.getreply()[0] == 250
    gateway.received(1, having="smtplib 4")
    gateway.received(1, having="smtplib 4", account="xyz")


def test_all_recipients_refused(gateway):
    with smtplib.SMTP("127.0.0.1", gateway.port, "far.example", 20, ("127.0.0.2", 0)) as far:
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            far.sendmail("ann@sender.example", ["a@elsewhere.example", "b@else.example"], "x\r\n")
        assert {code for code, _ in refused.value.recipients.values()} == {553}
        assert far.noop()[0] == 250


def test_a_message_over_the_limit(gateways):
    small = gateways()
    small.configure("20-limits.yaml", "limits: {message_size: 64K}\n")
    small.start()
    with smtplib.SMTP("127.0.0.1", small.port, "client.example", timeout=20) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "65536"
        large = wire(b"Subject: large\n\n" + b"x" * 70 + b"\n") * 1000
        with pytest.raises(smtplib.SMTPSenderRefused) as announced:
            client.sendmail("ann@sender.example", ["bob@example.org"], large)
        assert (announced.value.smtp_code, announced.value.smtp_error[:5]) == (552, b"5.3.4")
        assert client.mail("ann@sender.example")[0] == 250
        assert client.rcpt("bob@example.org")[0] == 250
        code, text = client.data(large)
        assert (code, text[:5]) == (552, b"5.3.4")
        client.sendmail("ann@sender.example", ["bob@example.org"], "Subject: small\r\n\r\nx\r\n")
    small.received(1)


def test_many_messages_over_one_connection(gateway, client):
    for number in range(50):
        text = f"Subject: smtplib 5\r\nX-Number: <{number}>\r\n\r\n.\r\n"
        client.sendmail("ann@sender.example", ["bob@example.org"], text)
    gateway.received(50, having="smtplib 5")
    read = [one for one in gateway.maildir() if one["Subject"] == "smtplib 5"]
    assert sorted(one["X-Number"] for one in read) == sorted(f"<{number}>" for number in range(50))
