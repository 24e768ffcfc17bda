"""A Postfix of the test's own: it relays to the gateway, and receives what the gateway relays."""

import email
import email.policy
import os
import pwd
import smtplib
import socketserver
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from peer import OWNER, SOON, Gateway, body, connected, eventually, free_port, program, wire

pytestmark = pytest.mark.peer("postfix")

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = mx.postfix.example
mydestination =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{gateway}
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_relay_restrictions = permit_mynetworks, reject
local_header_rewrite_clients =
smtpd_sender_restrictions = check_policy_service inet:127.0.0.1:{policy}
smtpd_delay_reject = yes
virtual_mailbox_domains = postfix.example, seven.example
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = inline:{{ ann@postfix.example=ann/, bob@postfix.example=bob/, ann@seven.example=ann/ }}
virtual_uid_maps = static:{owner}
virtual_gid_maps = static:{owner}
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
smtpd_tls_security_level = may
smtpd_tls_received_header = yes
smtpd_tls_cert_file = {folder}/certificate.pem
smtpd_tls_key_file = {folder}/key.pem
"""

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

#: A port that does not offer 8BITMIME.
SEVEN = "127.0.0.1:{port} inet n - n - - smtpd -o smtpd_discard_ehlo_keywords=8bitmime\n"


class Greylist(socketserver.ThreadingTCPServer):
    """Postfix's policy protocol: whom it does not know it sends away once, if the address says so."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Questions)
        self.seen = set()


class Questions(socketserver.StreamRequestHandler):
    def handle(self):
        asked = {}
        for line in self.rfile:
            name, _, value = line.decode().strip().partition("=")
            if name:
                asked[name] = value
                continue
            self.wfile.write(f"action={self.action(asked)}\n\n".encode())
            asked = {}

    def action(self, asked):
        sender = asked["sender"]
        if not sender.startswith("grey") or sender in self.server.seen:
            return "DUNNO"
        self.server.seen.add(sender)
        return "450 4.7.1 Greylisted, try again"


class Postfix:
    """An instance with a configuration, a queue and mailboxes in `folder`."""

    def __init__(self, folder, gateway, policy):
        self.folder, self.port, self.seven = folder, free_port(), free_port()
        for name in ("config", "queue", "data", "mail"):
            (folder / name).mkdir()
        os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
        os.chown(folder / "mail", OWNER, OWNER)
        self._certify()
        main = MAIN.format(folder=folder, gateway=gateway, policy=policy, owner=OWNER)
        (folder / "config" / "main.cf").write_text(main)
        (folder / "config" / "master.cf").write_text(
            MASTER.format(port=self.port) + SEVEN.format(port=self.seven)
        )

    def start(self):
        self._run("start")
        eventually(lambda: connected(self.port))

    def stop(self):
        self._run("stop")

    def taken(self, user, having):
        """Give the messages of a mailbox with this text."""
        found = (path.read_bytes() for path in (self.folder / "mail" / user / "new").glob("*"))
        return [content for content in found if having.encode() in content]

    def received(self, user, having):
        """Wait for one message; gives it."""
        (message,) = eventually(lambda: self.taken(user, having))
        return message

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def _run(self, command):
        done = subprocess.run(
            [program("postfix"), "-c", self.folder / "config", command],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)

    def _certify(self):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mx"
        files = ["-keyout", self.folder / "key.pem", "-out", self.folder / "certificate.pem"]
        subprocess.run([*command.split(), *files], capture_output=True, check=True)


@pytest.fixture(scope="module")
def pair():
    """Give a gateway and a Postfix, each the other's way out."""
    if os.geteuid():
        pytest.skip("only root can start a Postfix")
    with ExitStack() as stack:
        ours, theirs = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))) for _ in range(2)
        )
        ours.chmod(0o755)
        theirs.chmod(0o755)
        policy = stack.enter_context(Greylist())
        threading.Thread(target=policy.serve_forever, daemon=True).start()
        stack.callback(policy.shutdown)
        gateway = Gateway(ours)
        postfix = Postfix(theirs, gateway.port, policy.server_address[1])
        routes = f'postfix.example: "127.0.0.1:{postfix.port}", seven.example: "127.0.0.1:{postfix.seven}"'
        gateway.configure("40-remote.yaml", f"remote: {{routes: {{{routes}}}}}\n")
        gateway.plug("quadratic_retry", SOON)
        stack.callback(gateway.stop)
        gateway.start()
        stack.callback(postfix.stop)
        postfix.start()
        yield gateway, postfix


def send(port, recipients, content, sender="ann@example.org", options=()):
    with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=20) as client:
        client.sendmail(sender, recipients, wire(content), options)


def test_postfix_takes_our_mail_byte_for_byte(pair):
    """8-bit text, dots, and lines as long as Postfix keeps whole."""
    gateway, postfix = pair
    content = b"Subject: relayed\n\n" + body(2000)
    send(gateway.port, ["ann@postfix.example", "bob@postfix.example"], content, options=["BODY=8BITMIME"])
    for user in ("ann", "bob"):
        kept = postfix.received(user, "Subject: relayed")
        assert kept.endswith(b"\n" + content)
        assert kept.startswith(f"Return-Path: <ann@example.org>\nX-Original-To: {user}@postfix".encode())
    gateway.idle()


PARTS = """\
Subject: {subject}
MIME-Version: 1.0
Content-Type: multipart/{kind}; boundary=b

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

{text}
--b
Content-Type: application/json

{{"{signed}": 1}}
--b--
"""


def test_where_postfix_takes_seven_bits_it_gets_the_same_in_them(pair):
    gateway, postfix = pair
    text = f"grüße = \n.\n{'ü' * 400}\n"
    content = PARTS.format(subject="seven bits", kind="mixed", text=text, signed="ä").encode()
    send(gateway.port, ["ann@seven.example"], content, options=["BODY=8BITMIME"])
    kept = postfix.received("ann", "Subject: seven bits")
    assert kept.isascii()
    parsed = email.message_from_bytes(kept, policy=email.policy.default)
    first, second = parsed.iter_parts()
    assert first.get_content() == text
    assert second.get_content() == '{"ä": 1}'.encode()
    gateway.idle()


def test_where_postfix_takes_seven_bits_a_signed_text_comes_back(pair):
    gateway, postfix = pair
    content = PARTS.format(subject="signed", kind="signed; protocol=x/y", text="grüße", signed="").encode()
    send(gateway.port, ["ann@seven.example"], content, "dora@example.net", ["BODY=8BITMIME"])
    gateway.received(1, having="a signature covers its 8-bit text", account="xyz")
    assert postfix.taken("ann", "Subject: signed") == []
    gateway.idle()


def test_opportunistic_tls(pair):
    gateway, postfix = pair
    send(gateway.port, ["ann@postfix.example"], b"Subject: encrypted\n\nx\n")
    kept = postfix.received("ann", "Subject: encrypted")
    assert b"(using TLSv1.3 with cipher" in kept
    (event,) = eventually(lambda: gateway.events("ann@postfix.example", "delivery.delivered")[-1:])
    assert event["peer"] == f"127.0.0.1[127.0.0.1]:{postfix.port}"


def test_postfix_relays_to_us(pair):
    gateway, postfix = pair
    content = b"Subject: from Postfix\n\n" + body(500)
    recipients = [f"u{number}@example.org" for number in range(20)]
    send(postfix.port, recipients, content, "carl@postfix.example", ["BODY=8BITMIME"])
    kept = gateway.received(20, having="Subject: from Postfix")
    assert all(one.endswith(b"Subject: from Postfix\n\n" + body(500)) for one in kept)
    assert b"Received: from mx.postfix.example" in kept[0]
    eventually(lambda: postfix.log.count("status=sent (250 2.") >= 20)


def test_greylisting_delays_and_loses_nothing(pair):
    gateway, postfix = pair
    send(gateway.port, ["ann@postfix.example"], b"Subject: patience\n\nx\n", "grey@example.org")
    postfix.received("ann", "Subject: patience")
    gateway.idle()
    events = gateway.events("grey@example.org", "message.accepted")
    story = gateway.events(events[0]["message"], "delivery.deferred", "delivery.delivered")
    assert [event["event"] for event in story] == ["delivery.deferred", "delivery.delivered"]
    assert story[0]["reply"].startswith("450 4.7.1 ")


def test_what_postfix_refuses_bounces_to_the_sender(pair):
    gateway, postfix = pair
    send(gateway.port, ["nobody@postfix.example", "bob@postfix.example"], b"Subject: half\n\nthe body\n")
    postfix.received("bob", "Subject: half")
    (bounce,) = gateway.received(1, having="failure notice")
    assert bounce.startswith(b"Return-Path: <>\nDelivered-To: abc-ann@example.org\n")
    text = bounce.partition(b"\n\n")[2].decode()
    assert text.startswith("Hi. This is the mail gateway at mail.gateway.example.\n")
    paragraphs = text.split("\n\n")
    assert paragraphs[1].startswith("<nobody@postfix.example>:\n")
    assert "550 5.1.1 <nobody@postfix.example>: Recipient address rejected" in paragraphs[1]
    assert paragraphs[2] == "--- A copy of the message follows."
    assert paragraphs[3].startswith("Return-Path: <ann@example.org>\nReceived: from client.example")
    assert text.endswith("Subject: half\n\nthe body\n")
    assert "bob@postfix.example" not in text


def test_our_refusal_comes_back_by_postfix(pair):
    """A drop-in rule refuses; Postfix's bounce reaches the sender, who has a mailbox here."""
    gateway, postfix = pair
    gateway.plug(
        "site_rule",
        '"""site_rule: refuse one address."""\n'
        "from gateway import Plugin, Reject, hookimpl\n\n\n"
        "class SiteRule(Plugin):\n"
        "    @hookimpl\n"
        "    def rcpt(self, recipient):\n"
        '        if recipient.original.startswith("unwanted@"):\n'
        '            return Reject("5.7.1", "the site does not want this")\n'
        "        return None\n",
    )
    gateway.mailward("reload")
    send(postfix.port, ["unwanted@example.org"], b"Subject: refused\n\nx\n", "dora@example.net")
    (bounce,) = gateway.received(1, having="Undelivered Mail", account="xyz")
    assert "553 5.7.1 the site does not want this" in " ".join(bounce.decode().split())
