"""Postfix asks Mailward by milter: what a plugin says is seen in Postfix's replies, queue and log."""

import os
import smtplib
import subprocess
from contextlib import ExitStack

import pytest
from peer import Gateway, connected, eventually, folder_of, free_port, program
from test_postfix import Postfix

pytestmark = pytest.mark.peer("postfix")

POLICY = '''\
"""policy: answer as the names in the envelope ask."""

from gateway import Address, Defer, Discard, Disconnect, Hold, Plugin, Recipient, Reject, hookimpl


def asked(text, stage):
    if f"reject-{stage}" in text:
        return Reject("5.7.1", f"100% no at {stage}")
    if f"defer-{stage}" in text:
        return Defer("4.7.1", f"later at {stage}")
    return Disconnect("4.7.0", "go away") if f"disconnect-{stage}" in text else None


class Policy(Plugin):
    @hookimpl
    def connect(self, session):
        return asked("reject-connect" if session.client.ip == "127.0.0.2" else "", "connect")

    @hookimpl
    def helo(self, session, name):
        return asked(name, "helo")

    @hookimpl
    def mail(self, transaction):
        return asked(transaction.sender, "mail")

    @hookimpl
    def rcpt(self, transaction, recipient):
        return asked(recipient.address, "rcpt")

    @hookimpl
    def data(self, transaction):
        return asked(transaction.sender, "data")

    @hookimpl
    def message(self, transaction, message):
        sender = transaction.sender
        if sender.startswith("hold"):
            return Hold("look at this one")
        if sender.startswith("discard"):
            return Discard("dull")
        if sender.startswith("edit"):
            session = transaction.session
            message.prepend("X-Top", f"{session.client.ip} {session.helo} {session.notes['milter'].get('i')}")
            message.append("X-End", "a\\n\\tfold")
            message.remove("X-Secret")
            message.body = b"\\nAnother body.\\n"
            transaction.sender = Address("changed@remote.example")
            transaction.recipients[:] = [Recipient.of("bob@postfix.example")]
        return asked(sender, "message")
'''

USERS = ", ".join(f"{name}@postfix.example={name}/" for name in ("ann", "bob", "reject-rcpt", "defer-rcpt"))
MAIN = """
relayhost =
smtpd_sender_restrictions =
smtpd_milters = {milter}
virtual_mailbox_maps = inline:{{ {users} }}
"""


class Site:
    """A gateway that only answers, and a Postfix that asks it."""

    def __init__(self, gateway, postfix):
        self.gateway, self.postfix = gateway, postfix

    def send(
        self,
        sender,
        recipients=("ann@postfix.example",),
        *,
        helo="client.example",
        source="127.0.0.1",
        text="",
    ):
        """Give (stage, code, reply) of the first refusal, or ("", 250, reply)."""
        steps = [
            ("connect", lambda c: c.connect("127.0.0.1", self.postfix.port)),
            ("helo", lambda c: c.ehlo(helo)),
            ("mail", lambda c: c.mail(sender)),
            *(("rcpt", lambda c, one=one: c.rcpt(one)) for one in recipients),
            (
                "message",
                lambda c: c.data(text or f"From: <{sender}>\nSubject: {sender}\nX-Secret: x\n\nHello.\n"),
            ),
        ]
        client = smtplib.SMTP(source_address=(source, 0), timeout=20)
        try:
            for stage, step in steps:
                try:
                    code, said = step(client)
                except smtplib.SMTPDataError as error:
                    return "data", error.smtp_code, error.smtp_error.decode()
                if code >= 400:
                    return stage, code, said.decode()
            return "", code, said.decode()
        finally:
            client.close()

    def queue(self):
        arguments = [program("postqueue"), "-c", self.postfix.folder / "config", "-j"]
        return subprocess.run(arguments, capture_output=True, check=True, text=True).stdout


@pytest.fixture(scope="module", params=["inet", "unix"])
def site(request):
    if os.geteuid():
        pytest.skip("only root can start a Postfix")
    with ExitStack() as stack:
        gateway = Gateway(folder_of(stack))
        stack.callback(gateway.stop)
        path = gateway.folder / "ask"
        path.mkdir()
        path.chmod(0o777)
        port = free_port()
        address = f"127.0.0.1:{port}" if request.param == "inet" else f"unix:{path}/milter"
        gateway.configure(
            "20-milter.yaml", f'listeners: [{{name: policy, protocol: milter, address: "{address}"}}]\n'
        )
        gateway.plug("policy", POLICY)
        gateway.start()
        if request.param == "unix":
            (path / "milter").chmod(0o777)
        folder = gateway.folder / "postfix"
        folder.mkdir()
        folder.chmod(0o755)
        postfix = Postfix(folder, gateway.port, port)
        milter = f"inet:{address}" if request.param == "inet" else address
        with (folder / "config" / "main.cf").open("a") as main:
            main.write(MAIN.format(milter=milter, users=USERS))
        stack.callback(postfix.stop)
        postfix.start()
        eventually(lambda: connected(postfix.port))
        yield Site(gateway, postfix)


CASES = [
    ("connect", {"source": "127.0.0.2"}, 554, "milter-reject: CONNECT"),
    # Postfix keeps it for the next command.
    ("mail", {"helo": "reject-helo.example"}, 554, "milter-reject: EHLO"),
    ("helo", {"helo": "defer-helo.example"}, 421, "milter-reject: EHLO"),
    ("mail", {"sender": "reject-mail@a.example"}, 553, "milter-reject: MAIL"),
    ("mail", {"sender": "defer-mail@a.example"}, 450, "milter-reject: MAIL"),
    ("mail", {"sender": "disconnect-mail@a.example"}, 421, "milter-reject: MAIL"),
    ("rcpt", {"recipients": ["reject-rcpt@postfix.example"]}, 553, "milter-reject: RCPT"),
    ("rcpt", {"recipients": ["defer-rcpt@postfix.example"]}, 450, "milter-reject: RCPT"),
    ("data", {"sender": "reject-data@a.example"}, 550, "milter-reject: DATA"),
    ("message", {"sender": "reject-message@a.example"}, 554, "milter-reject: END-OF-MESSAGE"),
    ("message", {"sender": "defer-message@a.example"}, 451, "milter-reject: END-OF-MESSAGE"),
]


@pytest.mark.parametrize(("stage", "how", "code", "logged"), CASES)
def test_a_refusal_is_postfixs_reply_and_in_its_log(site, stage, how, code, logged):
    before = site.postfix.log.count(logged)
    said = site.send(**{"sender": "fine@a.example", **how})
    assert said[:2] == (stage, code)
    if "reject" in str(how):  # at connect Postfix speaks for itself
        assert "5.7.1 100% no at " in said[2]
    eventually(lambda: site.postfix.log.count(logged) > before)


def test_silence_delivers(site):
    assert site.send("quiet@a.example")[1] == 250
    message = site.postfix.received("ann", "Subject: quiet@a.example")
    assert b"X-Secret: x" in message
    assert message.count(b"Received:") == 1


def test_edits_of_header_body_sender_and_recipients_are_made(site):
    assert site.send("edit@a.example")[1] == 250
    message = site.postfix.received("bob", "Subject: edit@a.example").replace(b"\r\n", b"\n")
    lines = message.decode().split("\n")
    assert lines[0] == "Return-Path: <changed@remote.example>"
    top, received = (
        next(i for i, line in enumerate(lines) if line.startswith(n)) for n in ("X-Top", "Received")
    )
    assert top < received
    assert lines[top].startswith("X-Top: 127.0.0.1 client.example ")
    queue_id = lines[top].split()[-1]
    assert any(f"id {queue_id}" in line for line in lines)
    assert b"\nX-End: a\n\tfold\n\nAnother body.\n" in message
    assert b"X-Secret" not in message
    assert site.postfix.taken("ann", "Subject: edit@a.example") == []
    (told,) = [
        e for e in site.gateway.events("edit@a.example", "milter.answered") if e["stage"] == "message"
    ] or [None]
    if told:
        assert told["queue_id"] == queue_id


def test_hold_is_in_postfixs_hold_queue(site):
    assert site.send("hold@a.example")[1] == 250
    eventually(lambda: "milter-hold: END-OF-MESSAGE" in site.postfix.log)
    assert any(
        '"queue_name": "hold"' in line and "hold@a.example" in line for line in site.queue().splitlines()
    )


def test_discard_is_accepted_and_gone(site):
    assert site.send("discard@a.example")[1] == 250
    eventually(lambda: "milter-discard" in site.postfix.log)
    assert "discard@a.example" not in site.queue()
    assert site.postfix.taken("ann", "discard@a.example") == []


def test_a_large_message_and_a_second_one_in_the_session(site):
    text = "From: big@a.example\nSubject: big@a.example\n\n" + ("x" * 78 + "\n") * 20_000
    assert site.send("big@a.example", text=text)[1] == 250
    assert len(site.postfix.received("ann", "Subject: big@a.example")) > 20_000 * 79


def test_nothing_of_it_is_the_gateways(site):
    site.send("quiet@a.example")
    assert site.gateway.events("quiet@a.example", "message.accepted") == []
    assert site.gateway.mailward("queue", "list", "--json").strip() == ""
