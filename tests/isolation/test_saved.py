"""What a plugin keeps: with a session, with a transaction, and with the message behind the queue."""

import pytest

from gateway import Stages
from gateway.plugin import LARGEST_NOTE
from gateway.testing import Bench, delivery, entry, transaction

PLUGIN = """
from dataclasses import dataclass, field
from gateway import Plugin, hookimpl

@dataclass
class Score:
    points: float = 0.0
    words: list[str] = field(default_factory=list)

class P(Plugin):
    @hookimpl
    def mail(self, transaction):
        self.saved(transaction, Score).points = 2.5
    @hookimpl
    def message(self, transaction, message):
        self.saved(transaction, Score).words += [one.address for one in transaction.recipients]
    @hookimpl
    def outgoing(self, delivery, message):
        found = self.saved(delivery, Score)
        message.prepend("X-Score", f"{found.points} {' '.join(found.words)}")
        return message
"""


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_a_stage_before_the_queue_tells_one_behind_it(mailward_gateway, tmp_path, isolation):
    source = tmp_path / "score.py"
    source.write_text(PLUGIN)
    gateway = mailward_gateway(source, yaml=f"score: {{isolation: {isolation}}}\n")
    gateway.send("ann@example.com", ["joe@far.example"])
    (mail,) = gateway.arrived()
    assert b"X-Score: 2.5 joe@far.example\n" in mail


@pytest.mark.parametrize("value", ["object()", f"'x' * {LARGEST_NOTE}"])
def test_what_cannot_be_stored_is_the_plugins_fault_and_no_mail_is_taken(mailward_gateway, tmp_path, value):
    source = tmp_path / "score.py"
    source.write_text(PLUGIN.replace("points = 2.5", f"points = {value}"))
    gateway = mailward_gateway(source)
    with gateway.client() as client:
        client.ehlo()
        client.mail("ann@example.com")
        client.rcpt("joe@far.example")
        assert client.data("Subject: x\r\n\r\nx\r\n")[0] == 451
    (told,) = gateway.wait_for("plugin.failed")
    assert told["plugin"] == "score"
    assert "stores with a message" in told["error"]


async def test_only_a_dataclass_can_be_saved(tmp_path):
    bench = Bench(tmp_path)
    chain = bench.chain(
        one="from gateway import Plugin, hookimpl\nclass P(Plugin):\n    @hookimpl\n"
        "    def mail(self, transaction):\n        self.saved(transaction, dict)['a'] = 1\n"
    )
    assert (await chain.ask(Stages.mail, transaction())).failed
    assert "dict is no dataclass" in bench.told("plugin.failed")[0].error


async def test_what_was_stored_for_another_version_of_the_plugin_is_a_fault_and_not_a_guess(tmp_path):
    bench = Bench(tmp_path)
    chain = bench.chain(score=PLUGIN)
    attempt = delivery(entry(notes={"score": {"points": "many"}}))
    assert (await chain.transform(Stages.outgoing, attempt, attempt.entry.message.copy())).failed
    assert "points" in bench.told("plugin.failed")[0].error
