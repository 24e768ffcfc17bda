"""What a worker asks of the agent has an end, whatever an account does with its own child."""

import asyncio
import os
import socket
from types import SimpleNamespace

from gateway import agency
from gateway.address import Address
from gateway.chain import Answer, Step
from gateway.envelope import Account, Delivery, Entry, EntryRecipient, Recipient, Route
from gateway.message import Message

ANN = Account("ann", 61001, 61001, "/home/ann")


class Chain:
    async def ask(self, *_):
        return Answer(ANN)


def inline(_):
    raise AssertionError("it is not for the worker to deliver")


async def test_a_child_that_never_answers_is_hung_up_on_and_the_mail_waits(monkeypatch):
    monkeypatch.setattr(agency, "_MORE", 0.01)
    plugin = SimpleNamespace(settings=SimpleNamespace(program_time=0.05), chain=Chain(), stem="dot_qmail")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        made = Step("dot_qmail", inline, 0.0, skip=False, dry_run=False, edits=False)
        step = agency.Agency(ours).bound(made, plugin, "deliver")
        one = EntryRecipient(0, Recipient.of("ann@example.org"), "attempting")
        entry = Entry("1", Address(""), Message(b"", b""), [one], 0.0, "smtp")
        (outcome,) = await step.call(Delivery("", entry, Route("dot_qmail", "local"), (one,), Address(""), 1))
        assert (outcome.result, outcome.text) == ("deferred", "no answer came within 0.06 s")
        _, files, _, _ = socket.recv_fds(theirs, 4096, 3)
        with socket.socket(fileno=files[-1]) as answer:
            assert await asyncio.to_thread(answer.recv, 1) == b""
        for one in files[:-1]:
            os.close(one)
