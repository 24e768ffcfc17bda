"""DSN (RFC 3461) from RCPT to the report: who is told what, in which form, and what travels on."""

import email
import email.policy

import pytest

from gateway.address import Address
from gateway.envelope import Birth, Entry, Outcome, Recipient
from gateway.message import Message
from gateway.queue.dsn import inherited, success, wants, wants_warning, warned

pytest_plugins = ["gateway.testing.fixtures"]

#: Delivers by the local part; what comes to the sender's box is written down.
BOX = """
from gateway import Address, Birth, Message, Outcome, Plugin, Route, hookimpl

class Box(Plugin):
    @hookimpl
    def route(self, recipient):
        return Route("box", "local")

    @hookimpl
    def deliver(self, delivery):
        return [self.outcome(delivery, one) for one in delivery.recipients]

    def outcome(self, delivery, one):
        word = one.recipient.address.local_part
        entry = delivery.entry
        if word == "later":
            return Outcome(one.number, "deferred", "come again\\n", "4.2.1")
        if word == "no":
            return Outcome(one.number, "failed", "no way\\n", "5.1.1")
        if word.startswith("handed-"):
            return Outcome(one.number, "delivered", "fine\\n", "2.0.0", handed=word[7:])
        if word.startswith(("one", "two", "list")):
            to = (Address("a@x.example"), Address("b@x.example"))[: 1 if word == "one" else 2]
            sender = Address("owner@x.example") if word == "list" else delivery.sender
            birth = Birth(sender, to, Message(entry.message.header, entry.message.body), "forward")
            return Outcome(one.number, "delivered", "did 0+2+0\\n", births=(birth,))
        said = [f"{key}={value}" for key, value in sorted({**entry.params, **one.recipient.params}.items())]
        with (self.site.base / f"{word}.eml").open("ab") as file:
            file.write(" ".join(said).encode() + b"\\n" + bytes(entry.message))
        return Outcome(one.number, "delivered", "fine\\n", "2.0.0")
"""


@pytest.fixture
def gateway(mailward_gateway, tmp_path):
    """Give `gateway(yaml)`: one that delivers into the box."""

    def start(yaml=""):
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins/box.py").write_text(BOX)
        (tmp_path / "plugins/box.py").chmod(0o644)
        return mailward_gateway(yaml=f"recipient_check: {{enabled: false}}\n{yaml}")

    return start


def send(gateway, *recipients, mail=("RET=HDRS", "ENVID=QQ+2B31"), sender="sender@x.example"):
    """Send a message; each recipient is (address, parameters)."""
    with gateway.client() as client:
        client.ehlo()
        assert client.mail(sender, mail)[0] == 250
        for address, *params in recipients:
            assert client.rcpt(address, params)[0] == 250
        code, said = client.data(b"Subject: hello\r\n\r\nthe body\r\n")
        assert code == 250
        return said.decode().rpartition(" ")[2]


def report(gateway, count=1):
    """Wait for the report, and read it: what was said of the message, then of each recipient."""
    gateway.wait_for("message.finished", count)
    path = gateway.base / "sender.eml"
    if not path.exists():
        return None
    _, _, raw = path.read_bytes().partition(b"\n")
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert not any(part.defects for part in parsed.walk())
    return parsed


def groups(parsed):
    return [dict(group) for group in parsed.get_payload(1).get_payload()]


def test_a_delivery_is_told_to_who_asked(gateway):
    running = gateway()
    id_ = send(
        running,
        ("ok@x.example", "NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;o+2Bk@far.example"),
        ("quiet@x.example", "NOTIFY=FAILURE"),
        ("plain@x.example",),
    )
    parsed = report(running, 2)
    assert parsed["Subject"] == "delivery notice"
    assert [part.get_content_type() for part in parsed.iter_parts()][-1] == "text/rfc822-headers"
    message, *recipients = groups(parsed)
    assert message["Original-Envelope-Id"] == "QQ+31"
    (told,) = recipients
    assert told["Original-Recipient"] == "rfc822; o+k@far.example"
    assert told["Final-Recipient"] == "rfc822; ok@x.example"
    assert (told["Action"], told["Status"]) == ("delivered", "2.0.0")
    born = [one for one in running.events("message.accepted") if one.get("parent") == id_]
    assert [one["origin"] for one in born] == ["bounce"]


def test_what_goes_on_is_told_by_who_has_it(gateway):
    running = gateway()
    for word in ("handed-relayed", "handed-passed", "two", "one"):
        send(running, (f"{word}@x.example", "NOTIFY=SUCCESS"))
    # Each message, what it gave birth to, and the reports of all but that which was passed.
    running.wait_for("message.finished", 9)
    said = (running.base / "sender.eml").read_text()
    actions = sorted(line for line in said.splitlines() if line.startswith("Action: "))
    assert actions == ["Action: delivered", "Action: expanded", "Action: relayed"]


def test_never_is_never_and_a_failure_takes_ret_and_envid_along(gateway):
    running = gateway()
    id_ = send(running, ("no@x.example", "NOTIFY=NEVER"))
    (bounced,) = running.wait_for("message.bounced")
    assert (bounced["message"], bounced["reason"]) == (id_, "not_wanted")
    assert report(running) is None
    send(running, ("no@x.example", "NOTIFY=FAILURE"), ("no@x.example", "NOTIFY=SUCCESS"))
    parsed = report(running, 3)
    assert parsed["Subject"] == "failure notice"
    assert [part.get_content_type() for part in parsed.iter_parts()][-1] == "text/rfc822-headers"
    message, *recipients = groups(parsed)
    assert message["Original-Envelope-Id"] == "QQ+31"
    assert [one["Action"] for one in recipients] == ["failed"]


def test_who_asked_for_nothing_gets_qmails_format(gateway):
    running = gateway()
    send(running, ("no@x.example",), mail=())
    running.wait_for("message.finished", 2)
    assert b"Hi. This is the mail gateway at" in (running.base / "sender.eml").read_bytes()


@pytest.mark.parametrize("attempts", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_delay_is_told_once(gateway, attempts):
    running = gateway("queue: {delay_warning: 0.001s}\nquadratic_retry: {local: 1}\n")
    send(running, ("later@x.example", "NOTIFY=DELAY"), ("later@x.example",))
    running.wait_for("delivery.deferred", attempts)
    parsed = report(running)
    (told,) = groups(parsed)[1:]
    assert parsed["Subject"] == "delay notice"
    assert (told["Action"], told["Status"]) == ("delayed", "4.2.1")
    assert "Will-Retry-Until" in told
    assert "come again" in parsed.get_payload(0).get_content()
    assert len(running.events("message.finished")) == 1


def test_a_forward_takes_the_wishes_along(gateway):
    running = gateway()
    wishes = ("NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;one@x.example")
    mail = ("RET=FULL", "ENVID=abc", "BODY=8BITMIME")
    for word in ("one", "two", "list"):
        send(running, (f"{word}@x.example", *wishes), mail=mail)
    running.wait_for("message.finished", 9)
    lines = (running.base / "a.eml").read_bytes().splitlines()
    said = sorted(line.decode() for line in lines if b"BODY" in line)
    alone = "BODY=8BITMIME ENVID=abc NOTIFY={} ORCPT=rfc822;one@x.example RET=FULL"
    assert said == ["BODY=8BITMIME", alone.format("FAILURE"), alone.format("SUCCESS,FAILURE")]


def test_nobody_reports_to_the_null_sender(gateway):
    running = gateway()
    send(running, ("ok@x.example", "NOTIFY=SUCCESS"), sender="")
    assert report(running) is None


def entry(sender="s@x.example", **params):
    return Entry("1", Address(sender), Message(b""), [], 0.0, params=params)


def recipient(**params):
    return Recipient.of("r@x.example", params=params)


def test_unless_told_otherwise_a_sender_hears_of_failures_alone():
    assert [wants(entry(), recipient(), wish) for wish in ("SUCCESS", "FAILURE", "DELAY")] == [
        False,
        True,
        False,
    ]
    asked = recipient(NOTIFY="success,Delay")
    assert [wants(entry(), asked, wish) for wish in ("SUCCESS", "FAILURE", "DELAY")] == [True, False, True]
    assert not wants(entry(), recipient(NOTIFY="NEVER"), "FAILURE")
    assert wants(entry(""), recipient(), "FAILURE"), "a double bounce goes to the postmaster"
    assert not wants(entry(""), asked, "SUCCESS")


def test_a_warning_is_noted():
    asked = recipient(NOTIFY="DELAY")
    assert wants_warning(entry(), asked)
    assert not wants_warning(entry(), warned(asked))


def test_what_is_born_of_a_message_under_tls_stays_under_it():
    birth = Birth(Address("owner@x.example"), (Address("a@x.example"),), Message(b""), "forward")
    mail, wishes = inherited(
        entry(REQUIRETLS="", RET="FULL"), Address("s@x.example"), recipient(NOTIFY="NEVER"), (birth,), birth
    )
    assert (mail, wishes) == ({"REQUIRETLS": ""}, {})


def test_a_delivery_to_a_list_ends_there():
    birth = Birth(Address("owner@x.example"), (Address("a@x.example"),), Message(b""), "forward")
    assert success(Address("s@x.example"), Outcome(0, "delivered", births=(birth,))) == "delivered"
