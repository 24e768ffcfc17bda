"""Dovecot reads what was delivered: by IMAP, and by its own tool."""

import imaplib
import os
import smtplib
import subprocess
from contextlib import contextmanager

import pytest
from peer import body, connected, eventually, free_port, program, wire

pytestmark = pytest.mark.peer("dovecot-imapd")

CONF = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = imap
ssl = no
disable_plaintext_auth = no
default_internal_user = dovecot
default_login_user = dovenull
first_valid_uid = {owner}
first_valid_gid = 0
mail_location = maildir:{home}/Maildir
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={owner} gid={group} home={home}
}}
service imap-login {{
  inet_listener imap {{
    address = 127.0.0.1
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"""


@contextmanager
def dovecot(folder, home):
    """Run a Dovecot with one mailbox; gives its IMAP port."""
    port, owner = free_port(), home.stat()
    conf = folder / "dovecot.conf"
    conf.write_text(CONF.format(folder=folder, home=home, port=port, owner=owner.st_uid, group=owner.st_gid))
    process = subprocess.Popen([program("dovecot"), "-F", "-c", conf], stderr=subprocess.PIPE)
    try:
        eventually(lambda: connected(port) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield port
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


def deliver(gateway, content, recipient="bob@example.org"):
    with smtplib.SMTP("127.0.0.1", gateway.port, "client.example", timeout=20) as client:
        client.sendmail("ann@sender.example", [recipient], wire(content), ["BODY=8BITMIME"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Dovecot that serves another's mailbox")
def test_a_message_is_read_by_imap_byte_for_byte(gateways, open_folder):
    gateway = gateways()
    gateway.start()
    content = b"Subject: for Dovecot\nX-Long: " + b"z" * 900 + b"\n\n" + body(2000)
    deliver(gateway, content)
    deliver(gateway, b"Subject: another\n\nx\n")
    gateway.received(2)
    with (
        dovecot(open_folder, gateway.folder / "home" / "abc") as port,
        imaplib.IMAP4("127.0.0.1", port) as imap,
    ):
        imap.login("abc", "secret")
        assert imap.select("INBOX") == ("OK", [b"2"])
        _, (found,) = imap.search(None, "SUBJECT", '"for Dovecot"', "UNSEEN")
        _, ((_, read), _) = imap.fetch(found.decode(), "(RFC822)")
        assert read.endswith(b"\r\n" + wire(content))
        assert read.startswith(b"Return-Path: <ann@sender.example>\r\nDelivered-To: abc-bob@example.org\r\n")
        imap.store(found.decode(), "+FLAGS", r"\Deleted")
        imap.expunge()
        # Dovecot has moved the other to cur/; delivery goes on beside it.
        deliver(gateway, b"Subject: a third\n\nx\n")
        gateway.received(1, having="a third")
        assert imap.noop()[0] == "OK"
        assert imap.select("INBOX") == ("OK", [b"2"])


def test_doveadm_reads_the_maildir(gateway, open_folder):
    content = b"Subject: for doveadm\n\n" + body(300)
    deliver(gateway, content, "bob@example.net")
    (kept,) = gateway.received(1, account="xyz")
    home = gateway.folder / "home" / "xyz"
    conf = open_folder / "dovecot.conf"
    owner = home.stat()
    conf.write_text(
        CONF.format(folder=open_folder, home=home, port=0, owner=owner.st_uid, group=owner.st_gid)
    )
    done = subprocess.run(
        [
            program("doveadm"),
            "-c",
            conf,
            "-o",
            "log_path=/dev/stderr",
            "fetch",
            "text",
            "subject",
            "for doveadm",
        ],
        capture_output=True,
        timeout=20,
        check=False,
        user=owner.st_uid,
        env={"HOME": str(home), "USER": "xyz"},
    )
    assert done.returncode == 0, done.stderr
    assert kept in done.stdout.replace(b"\r\n", b"\n")
