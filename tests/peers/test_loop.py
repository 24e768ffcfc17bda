"""Mail that goes in circles ends, and the sender learns why."""

import smtplib


def test_a_route_that_leads_back_ends_at_the_hop_limit(gateways):
    gateway = gateways()
    gateway.configure("40-remote.yaml", f'remote: {{routes: {{"": "127.0.0.1:{gateway.port}"}}}}\n')
    gateway.configure("50-limits.yaml", "limits: {hops: 20}\n")
    gateway.start()
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as client:
        client.sendmail("ann@example.org", ["friend@circle.example"], "Subject: round\r\n\r\nx\r\n")
    (bounce,) = gateway.received(1, having="failure notice")
    report, _, original = bounce.partition(b"--- A copy of the message follows.")
    assert b"<friend@circle.example>:\n" in report
    assert b"The host said: 554 5.4.6 " in report
    assert original.count(b"\nReceived: ") == 20
    gateway.idle()
    assert len(gateway.messages()) == 1


def test_two_accounts_that_forward_to_each_other(gateways):
    """The line `Delivered-To` stops them at the second meeting, as in qmail."""
    gateway = gateways()
    gateway.home("abc", default="./Maildir/\n", ping="&pong@example.net\n")
    gateway.home("xyz", default="./Maildir/\n", pong="&ping@example.org\n")
    gateway.start()
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as client:
        client.sendmail("ann@example.org", ["ping@example.org"], "Subject: round\r\n\r\nx\r\n")
    (bounce,) = gateway.received(1, having="failure notice")
    assert b"this message is looping" in bounce
    gateway.idle()
