"""A renewed certificate whose key only root may read, and an agent that stands still for most of a minute."""

import contextlib
import os
import signal
import smtplib
import ssl
import tempfile
import time
from pathlib import Path

import pytest
import trustme
from cryptography import x509

#: Longer than until the next look at the certificates, and than the watchdog's patience from there.
STANDSTILL = 40
MINUTE = 60
PATIENCE = 40.0


def shown(site):
    """Give the serial number of the certificate that a client sees."""
    # Nobody vouches for it.
    trust = ssl._create_unverified_context()
    with smtplib.SMTP("127.0.0.1", site.port, "client.example", timeout=PATIENCE) as client:
        client.starttls(context=trust)
        seen = client.sock.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(seen).serial_number


@pytest.fixture
def gateway(site, users):
    """Give a gateway for one test alone, made as the one that the others share."""
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailward-agent-", dir="/srv")))
        base.chmod(0o755)
        made = type(site)(base, users)
        made.start()
        stack.callback(made.end)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(3 * MINUTE)
def test_a_renewal_counts_within_a_minute_and_a_silent_agent_costs_nothing(gateway):
    began = time.monotonic()
    os.kill(gateway.process.pid, signal.SIGSTOP)
    try:
        old = shown(gateway)
        while time.monotonic() - began < STANDSTILL:
            assert shown(gateway) == old
            time.sleep(1)
    finally:
        os.kill(gateway.process.pid, signal.SIGCONT)
    key = gateway.base / "mx.pem"
    trustme.CA().issue_cert("mail.example.org").private_key_and_cert_chain_pem.write_to_path(key)
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_uid == 0
    renewed = time.monotonic()
    while shown(gateway) == old:
        assert time.monotonic() - renewed < MINUTE
        time.sleep(1)
    names = [one["event"] for one in gateway.events()]
    assert "worker.died" not in names
    assert names.count("tls.certificate_loaded") == 2
