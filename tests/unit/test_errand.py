"""The words between a worker and the child of an account: junk makes a deferral, and reaches nothing."""

import asyncio
import json
import os
import socket

import pytest

from gateway.agency import Agency
from gateway.envelope import Account, Birth, Outcome
from gateway.errand import answer_of, asked_to_deliver, asked_whether_exists, outcome_of, read_request
from gateway.errors import AgentError
from gateway.message import FileBody, Message
from gateway.testing.build import delivery, entry, recipient

ANN = Account("ann", 5001, 5001, "/home/ann", "-", "list")
MESSAGE = Message(b"Subject: x\n", b"\nhello \xff\n")
GOOD = {"result": "delivered", "text": "did 1+0+0", "status": "", "births": []}
BIRTH = {"sender": "", "recipients": ["a@b"], "origin": "forward", "header": "", "body": None}


def test_a_delivery_comes_over_as_it_is():
    sent = delivery(entry("sender@example.com", ("ann-list@example.org",), MESSAGE))
    errand = read_request(asked_to_deliver("dot_qmail", ANN, sent), Account("ann", 5001, 5001, "/home/ann"))
    assert (errand.stage, errand.plugin, errand.account, errand.apart) == ("deliver", "dot_qmail", ANN, False)
    got = errand.subject
    assert (got.sender, got.entry.id, got.entry.birth) == (sent.sender, sent.entry.id, sent.entry.birth)
    assert bytes(got.entry.message) == bytes(MESSAGE)
    assert got.recipients[0].recipient.address == "ann-list@example.org"


def test_a_body_on_disk_stays_behind(tmp_path):
    (tmp_path / "body").write_bytes(b"\nsecret\n")
    message = Message(b"Subject: x\n", FileBody(tmp_path / "body", 8))
    data = asked_to_deliver("dot_qmail", ANN, delivery(entry("", ("a@b",), message)))
    assert b"secret" not in data
    assert str(tmp_path).encode() not in data
    assert read_request(data, ANN).apart


def test_whose_it_is_does_not_come_over():
    asked = json.loads(asked_whether_exists("dot_qmail", ANN, recipient("ann-list@example.org")))
    asked |= {"home": "/tmp", "uid": 0, "user": "root"}
    joe = Account("joe", 5002, 5002, "/home/joe")
    found = read_request(json.dumps(asked).encode(), joe).account
    assert found == Account("joe", 5002, 5002, "/home/joe", "-", "list")


def test_an_answer_comes_over_as_it_is():
    forward = Birth("a@b", ("c@d",), Message(b"Delivered-To: x\n", MESSAGE.body), "forward")
    other = Birth("", ("e@f",), Message(b"Subject: y\n", b"\nother\n"), "list")
    said = Outcome(3, "failed", "no", "5.1.1", births=(forward, other))
    got = outcome_of(json.loads(json.dumps(answer_of([said], MESSAGE))), 3, MESSAGE)
    assert (got.number, got.result, got.text, got.status) == (3, "failed", "no", "5.1.1")
    assert [bytes(one.message) for one in got.births] == [bytes(one.message) for one in said.births]
    assert got.births[0].message.body is MESSAGE.body


JUNK = [
    {},
    {**GOOD, "result": "accepted"},
    {**GOOD, "result": ["delivered"]},
    {**GOOD, "text": {"$": "Path", "of": "/etc/passwd"}},
    {**GOOD, "status": 5},
    {**GOOD, "births": None},
    {**GOOD, "births": ["x"]},
    {**GOOD, "births": [{**BIRTH, "recipients": [7]}]},
    {**GOOD, "births": [{**BIRTH, "header": "!"}]},
    {**GOOD, "births": [{**BIRTH, "body": {"path": "/etc/passwd", "size": 9}}]},
    {**GOOD, "births": [{**BIRTH, "sender": None}]},
]


@pytest.mark.parametrize("said", JUNK, ids=str)
def test_an_answer_that_is_none_is_an_error(said):
    with pytest.raises(AgentError, match="not understood"):
        outcome_of(said, 0, MESSAGE)


def test_what_an_account_says_is_bounded():
    got = outcome_of({**GOOD, "text": "x" * 100_000, "status": "5.1.1\r\nX: y"}, 0, MESSAGE)
    assert (len(got.text), got.status) == (8192, "")


@pytest.mark.parametrize(
    "answer",
    [b"", b"x", b"[]", b"[" * 100_000, b'"delivered"', b'{"error": "no"}', b"\xff", b"1" * 17_000_000],
)
async def test_a_child_that_answers_junk_is_an_error(answer):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)

    def child():
        _, files, _, _ = socket.recv_fds(theirs, 4096, 3)
        os.close(files[0])
        with socket.socket(fileno=files[1]) as reply:
            try:
                reply.sendall(answer)
            except OSError:
                return

    with ours, theirs:
        serving = asyncio.to_thread(child)
        asking = Agency(ours).ask(ANN, b"{}", None)
        _, said = await asyncio.gather(serving, asking, return_exceptions=True)
    assert isinstance(said, AgentError)
