"""Filters that people trust, asked by `milters`: opendkim signs, rspamd and clamav-milter refuse."""

import smtplib
import subprocess
from contextlib import ExitStack

import pytest
from peer import connected, eventually, free_port, program

from gateway.decision import Reject
from gateway.envelope import Recipient
from gateway.hookspecs import Stages
from gateway.message import Message
from gateway.testing import Bench
from gateway.testing import transaction as transaction_of

MESSAGE = b"""\
From: Ann <ann@example.com>
To: abc@example.org
Subject: three
\tlines,
 all of one
Date: Sun, 22 Nov 2026 12:00:00 +0000
Message-ID: <1@example.com>

Some text.

The end, with blanks  \t
"""
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


@pytest.fixture
def started(tmp_path):
    """Give `started(port, program, *arguments)`: it runs until the test ends."""
    with ExitStack() as stack:

        def start(port, name, *arguments):
            with (tmp_path / f"{name}.out").open("wb") as out:
                process = subprocess.Popen([program(name), *map(str, arguments)], stdout=out, stderr=out)
            stack.callback(process.wait, 20)
            stack.callback(process.kill)  # libmilter takes five seconds to end gently

            def there():
                assert process.poll() is None, (tmp_path / f"{name}.out").read_text("utf-8", "replace")
                return connected(port) if isinstance(port, int) else port.exists()

            eventually(there)

        yield start


async def shown(tmp_path, filters, raw, *, ip="127.0.0.1", **session):
    """Take a message as far as `message`; gives the decision and the message as it would be queued."""
    chain = Bench(tmp_path).build(f"milters:\n  filters: [{', '.join(filters)}]\n").chain
    await chain.life("milters", Stages.startup)
    mail = transaction_of("ann@example.com", ip=ip)
    mail.recipients = [Recipient.of("abc@example.org")]
    for name, value in {"helo": "client.example", "extended": True, **session}.items():
        setattr(mail.session, name, value)
    message = (await chain.transform(Stages.incoming, mail, Message.parse(raw))).value
    decision = (await chain.ask(Stages.message, mail, message)).value
    return decision, bytes(message)


def at(port, name):
    return f'{{address: "127.0.0.1:{port}", name: {name}, on_error: reject}}'


# opendkim


@pytest.fixture
def opendkim(tmp_path, started):
    """Give `opendkim(canonicalization)`: a signer for example.com; gives its port and its record."""

    def start(canonicalization):
        key = tmp_path / "key.pem"
        done = ["openssl", "genrsa", "-traditional", "-out", str(key), "2048"]
        subprocess.run(done, capture_output=True, check=True)
        key.chmod(0o600)
        public = subprocess.run(
            ["openssl", "rsa", "-in", key, "-pubout", "-outform", "PEM"], capture_output=True, check=True
        ).stdout
        port = free_port()
        (tmp_path / "opendkim.conf").write_text(
            f"Domain example.com\nSelector test\nKeyFile {key}\nMode sv\nSyslog no\n"
            f"Canonicalization {canonicalization}\nSocket inet:{port}@127.0.0.1\nRequireSafeKeys no\n"
            f"InternalHosts 127.0.0.1\nOversignHeaders From\n"
        )
        started(port, "opendkim", "-f", "-x", tmp_path / "opendkim.conf")
        record = b"".join(line for line in public.splitlines() if not line.startswith(b"--"))
        return port, b"v=DKIM1; k=rsa; p=" + record

    return start


def verified(message, record):
    dkim = pytest.importorskip("dkim")
    return dkim.verify(message.replace(b"\n", b"\r\n"), dnsfunc=lambda *_, **__: record)


@pytest.mark.peer("opendkim")
@pytest.mark.parametrize("canonicalization", ["simple/simple", "relaxed/relaxed"])
async def test_opendkim_signs_and_dkimpy_verifies(tmp_path, opendkim, canonicalization):
    port, record = opendkim(canonicalization)
    decision, message = await shown(tmp_path, [at(port, "opendkim")], MESSAGE)
    assert decision is None
    assert message.startswith(b"DKIM-Signature: v=1; a=rsa-sha256; c=" + canonicalization.encode())
    assert message.endswith(MESSAGE)
    assert verified(message, record)
    assert not verified(message.replace(b"The end", b"the end"), record)


@pytest.mark.peer("opendkim")
@pytest.mark.parametrize(("user", "signed"), [("", False), ("ann", True)])
async def test_opendkim_signs_for_those_who_have_logged_in_and_nobody_else(tmp_path, opendkim, user, signed):
    port, _ = opendkim("relaxed/simple")
    decision, message = await shown(tmp_path, [at(port, "opendkim")], MESSAGE, ip="192.0.2.77", user=user)
    assert decision is None
    assert (b"DKIM-Signature" in message) == signed


# clamav-milter


@pytest.fixture
def clamav(tmp_path, started):
    """Give the port of a clamav-milter whose clamd knows nothing but EICAR."""
    base = tmp_path / "clamav"
    (base / "db").mkdir(parents=True)
    (base / "db" / "local.ndb").write_text(f"Eicar-Local:0:*:{EICAR.hex()}\n")
    (base / "clamd.conf").write_text(
        f"LocalSocket {base}/clamd\nDatabaseDirectory {base}/db\nForeground yes\nTemporaryDirectory {base}\n"
    )
    started(base / "clamd", "clamd", "-c", base / "clamd.conf")
    port = free_port()
    (base / "milter.conf").write_text(
        f"MilterSocket inet:{port}@127.0.0.1\nClamdSocket unix:{base}/clamd\nForeground yes\n"
        f"OnInfected Reject\nRejectMsg virus %v\nAddHeader Replace\nTemporaryDirectory {base}\n"
    )
    started(port, "clamav-milter", "-c", base / "milter.conf")
    return port


@pytest.mark.peer("clamav-milter")
@pytest.mark.peer("clamav-daemon")
async def test_clamav_milter_refuses_eicar_and_marks_clean_mail(tmp_path, clamav):
    decision, message = await shown(tmp_path, [at(clamav, "clamav")], MESSAGE, ip="192.0.2.77")
    assert decision is None
    assert b"\nX-Virus-Status: Clean\n" in message
    decision, _ = await shown(tmp_path, [at(clamav, "clamav")], MESSAGE + EICAR + b"\n", ip="192.0.2.77")
    assert isinstance(decision, Reject)
    assert "Eicar-Local" in decision.text
    assert decision.reason == "milter clamav"


# rspamd

RSPAMD = """
options {{
  pidfile = "{base}/pid"; temp_dir = "{base}"; gtube_patterns = "all";
  dns {{ nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }}
  filters = "";
}}
logging {{ type = "file"; filename = "{base}/log"; level = "info"; }}
metric {{ name = "default"; actions {{ reject = 15; add_header = 6; }} }}
milter_headers {{ use = ["x-rspamd-server", "x-spam-level"]; skip_local = false; }}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{port}"; milter = yes; count = 1; timeout = 30s;
  upstream "local" {{ default = yes; self_scan = yes; }}
}}
modules {{ path = "/usr/share/rspamd/plugins/milter_headers.lua"; }}
"""


@pytest.fixture
def rspamd(tmp_path, started):
    """Give the port of an rspamd that scans by itself, without DNS, rules or Redis."""
    base = tmp_path / "rspamd"
    base.mkdir()
    port = free_port()
    (base / "rspamd.conf").write_text(RSPAMD.format(base=base, port=port))
    started(port, "rspamd", "-f", "-i", "-c", base / "rspamd.conf")
    return port


@pytest.mark.peer("rspamd")
async def test_rspamd_refuses_gtube_and_adds_headers_to_the_rest(tmp_path, rspamd):
    decision, message = await shown(tmp_path, [at(rspamd, "rspamd")], MESSAGE, ip="192.0.2.77")
    assert decision is None
    assert b"X-Rspamd-Server:" in message
    assert message.endswith(MESSAGE.partition(b"\n\n")[2])
    decision, _ = await shown(tmp_path, [at(rspamd, "rspamd")], MESSAGE + GTUBE + b"\n", ip="192.0.2.77")
    assert isinstance(decision, Reject)
    assert "Gtube" in decision.text


# All of it in a running gateway


@pytest.mark.peer("opendkim")
@pytest.mark.peer("clamav-milter")
@pytest.mark.peer("clamav-daemon")
def test_a_gateway_with_two_filters_refuses_a_virus_and_delivers_signed_mail(gateways, opendkim, clamav):
    port, record = opendkim("simple/simple")
    gateway = gateways()
    filters = f"{at(clamav, 'clamav')}, {at(port, 'opendkim')}"
    gateway.configure("30-milters.yaml", f"milters: {{filters: [{filters}]}}\n")
    gateway.start()
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=30) as client:
        client.sendmail("ann@example.com", ["abc@example.org"], MESSAGE.replace(b"\n", b"\r\n"))
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.sendmail("ann@example.com", ["abc@example.org"], (MESSAGE + EICAR).replace(b"\n", b"\r\n"))
    assert refused.value.smtp_code == 554
    (kept,) = gateway.received(1, having="DKIM-Signature")
    assert b"X-Virus-Status: Clean" in kept
    start = kept.index(b"DKIM-Signature")
    assert verified(kept[start:], record)
    (event,) = eventually(lambda: gateway.events("ann@example.com", "message.refused"))
    assert event["reason"] == "milter clamav"


# pyspf-milter: libmilter itself, by way of pymilter


@pytest.mark.peer("pyspf-milter")
async def test_pyspf_milter_adds_its_result_above_our_received(tmp_path, started):
    port = free_port()
    conf = tmp_path / "pyspf.conf"
    conf.write_text(
        f"debugLevel = 1\nTestOnly = 1\nSocket = inet:{port}@127.0.0.1\nPidFile = {tmp_path}/pid\n"
        "UserID = root:root\nInternalHosts = 127.0.0.1\nLookup_Time = 2\n"
    )
    started(port, "pyspf-milter", conf)
    decision, message = await shown(tmp_path, [at(port, "spf")], MESSAGE, ip="192.0.2.77")
    assert decision is None
    assert message.startswith(b"Authentication-Results: ")
    assert b"smtp.mailfrom=example.com" in message.partition(b"\nReceived: ")[0]
    assert message.endswith(MESSAGE)
