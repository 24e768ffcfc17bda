"""Postfix's sink receives what the gateway relays."""

import json
import os
import smtplib
import subprocess
from contextlib import ExitStack, contextmanager

import pytest
from peer import SOON, Gateway, body, connected, eventually, folder_of, free_port, program, wire

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


#: A domain -> how its host behaves.
HOSTS = {
    "esmtp.example": (),
    "smtp.example": ("-e",),
    "no-pipelining.example": ("-p", "-8"),
    "many.example": (),
    "refuses.example": ("-f", "RCPT", "-B", "550 5.7.1 nobody wants this"),
}
#: The same of hosts that delay mail, and do not refuse it.
MOODS = {
    "no-at-data.example": ("-r", "DATA"),
    "no-to-the-message.example": ("-r", "."),
    "greets-with-a-hard-no.example": ("-f", "CONNECT"),
    "goodbye-at-mail.example": ("-Q", "MAIL"),
    "gone-at-once.example": ("-q", "CONNECT"),
    "gone-at-rcpt.example": ("-q", "RCPT"),
    "gone-after-the-message.example": ("-q", "."),
    "gone-instead-of-354.example": ("-q", "DATA"),
}


@pytest.fixture(scope="module")
def folder():
    """Give a folder that every user may enter, with what each host has taken under its domain."""
    with ExitStack() as stack:
        yield folder_of(stack)


@pytest.fixture(scope="module")
def gateway(folder):
    """Give a gateway that knows all of these hosts, and tries again soon."""
    with ExitStack() as stack:
        routes = {}
        for domain, options in (HOSTS | MOODS).items():
            (folder / domain).mkdir()
            routes[domain] = f"127.0.0.1:{stack.enter_context(smtp_sink(folder / domain, *options))}"
        made = Gateway(folder_of(stack))
        made.configure("40-remote.yaml", json.dumps({"remote": {"routes": routes}}))
        made.plug("quadratic_retry", SOON)
        stack.callback(made.stop)
        made.start()
        yield made


def send(gateway, recipients, content, sender="ann@example.org", options=()):
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as client:
        client.sendmail(sender, recipients, wire(content), options)


def ended(gateway, domain):
    """Tell whether what went to this address or domain is delivered."""
    return gateway.events(domain, "delivery.delivered")


def taken(folder):
    """Give the messages that the sink has kept whole: those of its own header fields, then the content."""
    return [path.read_bytes() for path in sorted(folder.glob("mail.*"))]


EIGHT_BIT = b"Subject: sink\n\n" + body(2000)
SEVEN_BIT = EIGHT_BIT.replace("é".encode(), b"e")


@pytest.mark.parametrize(
    ("domain", "content"),
    [("esmtp.example", EIGHT_BIT), ("smtp.example", SEVEN_BIT), ("no-pipelining.example", SEVEN_BIT)],
    ids=["ESMTP", "SMTP", "no pipelining"],
)
def test_the_content_arrives_byte_for_byte(gateway, folder, domain, content):
    send(gateway, [f"friend@{domain}"], content, options=["BODY=8BITMIME"])
    (kept,) = eventually(lambda: ended(gateway, domain) and taken(folder / domain))
    assert b"X-Mail-Args: <ann@example.org>" in kept
    assert f"X-Rcpt-Args: <friend@{domain}>".encode() in kept
    assert kept.replace(b"\r\n", b"\n").rstrip(b"\n").endswith(content.rstrip(b"\n"))


def test_many_recipients_of_a_host_share_a_transaction(gateway, folder):
    send(gateway, [f"u{number}@many.example" for number in range(50)], b"Subject: fifty\n\nx\n")
    (kept,) = eventually(lambda: ended(gateway, "u49@many.example") and taken(folder / "many.example"))
    assert kept.count(b"X-Rcpt-Args:") == 50


def test_a_hard_refusal_bounces(gateway):
    send(gateway, ["friend@refuses.example"], b"Subject: unwanted\n\nx\n")
    (bounce,) = gateway.received(1, having="failure notice")
    assert b"550 5.7.1 nobody wants this" in bounce


@pytest.mark.parametrize("domain", MOODS)
def test_a_host_in_a_mood_delays_mail_and_never_loses_it(gateway, domain):
    """It is tried again and again, stays in the queue, and no bounce is sent."""
    send(gateway, [f"friend@{domain}"], f"Subject: later, {domain}\n\nx\n".encode())
    eventually(lambda: len(gateway.events(domain, "delivery.deferred")) > 1)
    assert [one for one in gateway.queued() if domain in str(one)]
    assert [content for content in gateway.messages().values() if domain.encode() in content] == []
