"""Our mail to a Postfix that wants TLS and logins (Dovecot knows the users), and to Dovecot by LMTP."""

import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from peer import OWNER, Gateway, connected, eventually, free_port, program
from test_postfix import MASTER, Postfix, send

pytestmark = [
    pytest.mark.peer("postfix"),
    pytest.mark.peer("dovecot-lmtpd"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Postfix"),
]

DOVECOT = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = lmtp
ssl = no
default_internal_user = dovecot
default_login_user = dovenull
first_valid_uid = {owner}
first_valid_gid = 0
mail_location = maildir:{folder}/mail/%n
auth_mechanisms = {mechanisms}
auth_username_format = %n
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
  override_fields = uid={owner} gid={owner} home={folder}/mail/%n
}}
service auth {{
  unix_listener {folder}/auth {{
    mode = 0666
  }}
}}
service lmtp {{
  unix_listener {folder}/lmtp {{
    mode = 0666
  }}
}}
"""

MAIN = """\
smtpd_tls_security_level = encrypt
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {auth}
smtpd_sasl_security_options = noanonymous
smtpd_recipient_restrictions = permit_sasl_authenticated, permit_auth_destination, reject
smtpd_relay_restrictions = permit_sasl_authenticated, permit_auth_destination, reject
smtpd_sender_restrictions =
virtual_mailbox_domains = open.example
"""

#: Recipients' domains, by what the gateway does for them; the last three want a login.
ROUTES = """\
remote:
  ca_file: {ca}
  tls: {{plain.example: none, encrypt.example: encrypt, verify.example: verify, other.example: verify}}
  routes:
    plain.example: "127.0.0.1:{port}"
    encrypt.example: "127.0.0.1:{port}"
    verify.example: "127.0.0.1:{port}"
    other.example: "127.0.0.2:{port}"
    smtps.example: {{hosts: ["127.0.0.1:{smtps}"], implicit: true, tls: verify}}
    login.example: {{hosts: ["127.0.0.1:{port}"], user: ann, password_file: {password}}}
    stranger.example: {{hosts: ["127.0.0.2:{port}"], user: ann, password_file: {password}}}
    wrong.example: {{hosts: ["127.0.0.1:{port}"], user: ann, password: wrong}}
    lmtp.example: "lmtp:unix:{lmtp}"
"""


class SecurePostfix(Postfix):
    """Wants TLS from everybody, and at another port from the first byte on."""

    def __init__(self, folder, authority, auth):
        super().__init__(folder, 1, 1)
        leaf = authority.issue_cert("127.0.0.1", "mx.postfix.example")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "certificate.pem"))
        (folder / "key.pem").write_bytes(leaf.private_key_pem.bytes())
        self.smtps = free_port()
        names = [line.partition(" ")[0] for line in MAIN.splitlines()]
        kept = [
            line
            for line in (folder / "config" / "main.cf").read_text().splitlines()
            if line.partition(" ")[0] not in (*names, "relayhost", "virtual_mailbox_maps", "inet_interfaces")
        ]
        domains = ["encrypt", "verify", "smtps", "login"]
        main = MAIN.format(auth=auth).replace("open.example", ", ".join(f"{one}.example" for one in domains))
        text = "\n".join([*kept, main, "virtual_mailbox_maps = static:all/", "inet_interfaces = 127.0.0.1"])
        (folder / "config" / "main.cf").write_text(text)
        master = MASTER.format(port=self.port)
        master += f"127.0.0.2:{self.port} inet n - n - - smtpd\n"
        master += f"127.0.0.1:{self.smtps} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes\n"
        (folder / "config" / "master.cf").write_text(master)


def start_dovecot(folder, stack, mechanisms):
    (folder / "mail").mkdir()
    os.chown(folder / "mail", OWNER, OWNER)
    (folder / "users").write_text("ann:{PLAIN}open sesame::::::\nbob:{PLAIN}x::::::\n")
    conf = folder / "dovecot.conf"
    conf.write_text(DOVECOT.format(folder=folder, owner=OWNER, mechanisms=mechanisms))
    process = subprocess.Popen([program("dovecot"), "-F", "-c", conf])
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    eventually(lambda: (folder / "lmtp").exists() and (folder / "auth").exists())


@pytest.fixture(scope="module", params=["plain login", "login", "plain scram-sha-256"])
def world(request):
    """Give a gateway and the Postfix that it sends to, where these mechanisms are offered."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))) for _ in range(3)]
        for folder in folders:
            folder.chmod(0o755)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folders[0] / "ca.pem"))
        (folders[0] / "password").write_text("open sesame\n")
        start_dovecot(folders[2], stack, request.param)
        postfix = SecurePostfix(folders[1], authority, folders[2] / "auth")
        gateway = Gateway(folders[0])
        routes = ROUTES.format(
            ca=folders[0] / "ca.pem",
            port=postfix.port,
            smtps=postfix.smtps,
            password=folders[0] / "password",
            lmtp=folders[2] / "lmtp",
        )
        gateway.configure("40-remote.yaml", routes)
        stack.callback(gateway.stop)
        gateway.start()
        stack.callback(postfix.stop)
        postfix.start()
        eventually(lambda: connected(postfix.smtps))
        gateway.mail = folders[2] / "mail"
        gateway.mechanisms = request.param
        yield gateway, postfix


def fate(gateway, recipient, content=None, options=()):
    """Send to an address, and give the event of its first attempt's end."""
    send(gateway.port, [recipient], content or f"Subject: for {recipient}\n\nx\n".encode(), options=options)
    ends = ("delivery.delivered", "delivery.deferred", "delivery.failed")
    (event, *_) = eventually(lambda: gateway.events(recipient, *ends))
    return event


@pytest.mark.parametrize(
    ("domain", "verified"), [("encrypt", ""), ("verify", "webpki"), ("smtps", "webpki"), ("login", "webpki")]
)
def test_postfix_takes_our_mail_under_tls(world, domain, verified):
    gateway, postfix = world
    recipient = f"u@{domain}.example"
    event = fate(gateway, recipient)
    assert event["event"] == "delivery.delivered", event
    assert "over TLS" in event["text"]
    message = postfix.received("all", f"for {recipient}\n")
    assert b"using TLSv1.3" in message
    if domain == "login":
        (told, *_) = [line for line in postfix.log.splitlines() if "sasl_username=ann" in line]
        best = next(one for one in ("scram-sha-256", "plain", "login") if one in gateway.mechanisms)
        assert f"sasl_method={best.upper()}" in told
    peer = event["peer"]
    ways = [one.get("verified", "") for one in gateway.events(peer, "tls.established") if one["peer"] == peer]
    assert verified in ways


@pytest.mark.parametrize(
    ("domain", "event", "status"),
    [
        ("plain", "failed", "5.7.0"),
        ("other", "deferred", "4.7.5"),
        ("stranger", "deferred", "4.7.5"),
        ("wrong", "deferred", "4.7.8"),
    ],
)
def test_mail_that_may_not_go_so_does_not(world, domain, event, status):
    gateway, postfix = world
    recipient = f"u@{domain}.example"
    told = fate(gateway, recipient)
    assert (told["event"], told["status"]) == (f"delivery.{event}", status)
    assert not postfix.taken("all", f"for {recipient}\n")
    assert "sesame" not in str(told)


def test_a_domain_that_is_not_its_own_is_relayed_for_our_login_only(world):
    """Postfix relays nothing for strangers: that it took this mail shows who we were."""
    gateway, postfix = world
    assert "u@login.example" in str(fate(gateway, "u@login.example", b"Subject: relayed\n\nx\n"))
    assert postfix.received("all", "Subject: relayed")


def test_dovecot_answers_for_each_recipient_by_lmtp(world):
    gateway, _ = world
    content = "Subject: t\n\n.\n..\ngrüße".encode()
    recipients = [f"{name}@lmtp.example" for name in ("ann", "nobody-at-all", "bob")]
    send(gateway.port, recipients, content, options=["BODY=8BITMIME"])
    ends = ("delivery.delivered", "delivery.failed", "delivery.deferred")
    events = [eventually(lambda one=one: gateway.events(one, *ends))[0] for one in recipients]
    assert [one["event"] for one in events] == ["delivery.delivered", "delivery.failed", "delivery.delivered"]
    assert events[1]["status"] == "5.1.1"
    for name in ("ann", "bob"):
        (path,) = eventually(lambda name=name: list((gateway.mail / name / "new").glob("*")))
        assert path.read_bytes().replace(b"\r\n", b"\n").endswith(content + b"\n")
