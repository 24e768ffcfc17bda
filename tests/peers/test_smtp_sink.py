"""Postfix's sink receives what the gateway relays."""

import os
import smtplib
import subprocess
from contextlib import ExitStack, contextmanager

import pytest
from peer import SOON, body, connected, eventually, free_port, program, wire

pytestmark = pytest.mark.peer("postfix")


@contextmanager
def smtp_sink(folder, *options):
    """Run smtp-sink; gives its port. What it takes is kept in `folder`, a file each."""
    port = free_port()
    folder.chmod(0o777)
    user = ("-u", "nobody") if os.geteuid() == 0 else ()
    command = [program("smtp-sink"), *user, *options, "-d", f"{folder}/mail.", f"127.0.0.1:{port}", "100"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: connected(port))
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def relay(gateways, open_folder):
    """Give `relay(*options)`: a gateway whose remote mail goes to a sink with these options."""
    with ExitStack() as stack:

        def start(*options, plugins=None):
            port = stack.enter_context(smtp_sink(open_folder, *options))
            gateway = gateways()
            gateway.configure("40-remote.yaml", f'remote: {{routes: {{"": "127.0.0.1:{port}"}}}}\n')
            for stem, text in (plugins or {}).items():
                gateway.plug(stem, text)
            gateway.start()
            return gateway

        yield start


def send(gateway, recipients, content, sender="ann@example.org", options=()):
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as client:
        client.sendmail(sender, recipients, wire(content), options)


def taken(folder):
    """Give the messages that the sink has kept whole: those of its own header fields, then the content."""
    return [path.read_bytes() for path in sorted(folder.glob("mail.*"))]


@pytest.mark.parametrize("options", [(), ("-e",), ("-p", "-8")], ids=["ESMTP", "SMTP", "no pipelining"])
def test_the_content_arrives_byte_for_byte(relay, open_folder, options):
    gateway = relay(*options)
    content = b"Subject: sink\n\n" + body(2000)
    send(gateway, ["friend@elsewhere.example"], content, options=["BODY=8BITMIME"])
    gateway.idle()
    (kept,) = taken(open_folder)
    assert b"X-Mail-Args: <ann@example.org>" in kept
    assert b"X-Rcpt-Args: <friend@elsewhere.example>" in kept
    assert kept.replace(b"\r\n", b"\n").rstrip(b"\n").endswith(content.rstrip(b"\n"))


def test_many_recipients_of_a_host_share_a_transaction(relay, open_folder):
    gateway = relay()
    send(gateway, [f"u{number}@elsewhere.example" for number in range(50)], b"Subject: fifty\n\nx\n")
    gateway.idle()
    (kept,) = taken(open_folder)
    assert kept.count(b"X-Rcpt-Args:") == 50


def test_a_hard_refusal_bounces(relay):
    gateway = relay("-f", "RCPT", "-B", "550 5.7.1 nobody wants this")
    send(gateway, ["friend@elsewhere.example"], b"Subject: unwanted\n\nx\n")
    (bounce,) = gateway.received(1, having="failure notice")
    assert b"550 5.7.1 nobody wants this" in bounce


MOODS = {
    "no at DATA": ("-r", "DATA"),
    "no to the message": ("-r", "."),
    "a greeting that is a hard no": ("-f", "CONNECT"),
    "goodbye at MAIL": ("-Q", "MAIL"),
    "gone at once": ("-q", "CONNECT"),
    "gone at RCPT": ("-q", "RCPT"),
    "gone after the message": ("-q", "."),
    "gone instead of 354": ("-q", "DATA"),
}


@pytest.mark.parametrize("options", MOODS.values(), ids=MOODS)
def test_a_host_in_a_mood_delays_mail_and_never_loses_it(relay, options):
    """It is tried again and again, stays in the queue, and no bounce is sent."""
    gateway = relay(*options, plugins={"quadratic_retry": SOON})
    send(gateway, ["friend@elsewhere.example"], b"Subject: later\n\nx\n")
    eventually(lambda: len(gateway.events("friend@elsewhere.example", "delivery.deferred")) > 1)
    assert len(gateway.queued()) == 1
    assert gateway.messages() == {}
