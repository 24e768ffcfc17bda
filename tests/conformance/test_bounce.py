"""The group `bounce` of the vectors: what qmail-send made of the reports of scripted deliveries."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
import vectors

from gateway import Entry, EntryRecipient, Message, Outcome, Recipient, new_id
from gateway.address import Address
from gateway.chain import Step
from gateway.decision import Accept
from gateway.queue import Dispatcher, MemoryQueue

STEMS = ("percenthack", "virtual_domains", "locals", "dot_qmail", "remote", "quadratic_retry", "bounces")
RESULTS = {"K": "delivered", "D": "failed", "Z": "deferred"}
WORDS = {
    "delivery.delivered": "success",
    "delivery.failed": "failure",
    "message.expired": "failure",
    "delivery.deferred": "deferral",
    "plugin.failed": "report",
}


def line(control, name, default):
    return vectors.text(control[name]).partition("\n")[0].rstrip() if name in control else default


def configuration(control, folder):
    """Say in our settings what the control directory said."""
    for name, content in control.items():
        (folder / name).write_bytes(vectors.raw(content))
    double = line(control, "doublebounceto", "postmaster")
    me = line(control, "me", "doublebouncehost")
    return {
        "percenthack": {"envnoathost": line(control, "envnoathost", line(control, "me", "envnoathost"))},
        "virtual_domains": {"file": "virtualdomains"},
        "locals": {"file": "locals"},
        "bounces": {
            "sender": line(control, "bouncefrom", "MAILER-DAEMON"),
            "host": line(control, "bouncehost", line(control, "me", "bouncehost")),
            "double_bounce_to": f"{double}@{line(control, 'doublebouncehost', me)}",
        },
    }


class Run:
    """One message through a dispatcher whose deliveries say what the vector says."""

    def __init__(self, case, folder):
        self.input = case["input"]
        control = self.input["control"]
        self.chain, plugins = vectors.chain_of(folder, configuration(control, folder), *STEMS)
        self.clock = plugins["bounces"].clock
        self.emitted = []
        self.chain._emit = self.emitted.append
        for plugin in ("dot_qmail", "remote"):
            self.chain._by_plugin["deliver", plugin] = Step(plugin, self.deliver, 30.0, False, False, False)
        self.reports = {k: (v[0], vectors.text(v[1])) for k, v in self.input["reports"].items()}
        self.deliveries, self.born = [], []
        self.queue = MemoryQueue(self.clock.time)
        concurrency = SimpleNamespace(local=10, remote=10, per_destination=10)
        lifetime = float(line(control, "queuelifetime", "604800"))
        self.dispatcher = Dispatcher(
            self.queue,
            lambda: self.chain,
            SimpleNamespace(flush=self.flush),
            SimpleNamespace(clock=self.clock),
            lambda: SimpleNamespace(concurrency=concurrency, lifetime=lifetime, delay_warning=lifetime),
            self.admit,
            plugins["bounces"].site,
        )

    async def flush(self):
        self.flushed = True

    async def deliver(self, delivery):
        outcomes = []
        for one in delivery.recipients:
            address = one.recipient.address
            self.deliveries.append([delivery.route.channel, delivery.sender, address])
            letter, report = self.reports.get(address, ("K", "ok\n"))
            if letter not in RESULTS:
                return []
            outcomes.append(Outcome(one.number, RESULTS[letter], report))
        return outcomes

    async def admit(self, transaction, message):
        """Keep what is born, held: the vectors end there."""
        self.born.append((transaction, message))
        recipients = [EntryRecipient(i, one, "held") for i, one in enumerate(transaction.recipients)]
        entry = Entry(transaction.id, transaction.sender, message, recipients, self.clock.time(), "bounce")
        return entry, Accept()

    async def result(self):
        message = Message.parse(b"Received: @TRACE@\n" + vectors.raw(self.input["message"]))
        addresses = [Recipient.of(Address(vectors.text(one))) for one in self.input["recipients"]]
        recipients = [EntryRecipient(i, one) for i, one in enumerate(addresses)]
        birth = self.clock.time() - self.input.get("aged", 0)
        entry = Entry(new_id(), Address(vectors.text(self.input["sender"])), message, recipients, birth)
        await self.queue.open()
        await self.queue.add(entry)
        await self.dispatcher.start()
        async with asyncio.timeout(10):
            while len(self.deliveries) < len(addresses) or self.dispatcher._held:  # noqa: ASYNC110 - no event says "idle"
                await asyncio.sleep(0)
        await self.dispatcher.stop()
        left = await self.queue.get(entry.id)
        await self.queue.close()
        words = Counter(WORDS[e.NAME] for e in self.emitted if e.NAME in WORDS)
        if words["report"]:
            del words["deferral"]
        triple = any(e.NAME == "message.bounced" and e.reason == "triple_bounce" for e in self.emitted)
        aged = "aged" in self.input
        return {
            "deliveries": sorted([c, str(s), str(r)] for c, s, r in self.deliveries),
            "log_results": dict(words),
            "done": left is None,
            "discarded": triple,
            "bounces": [read(*one, aged, len(addresses) > 1) for one in self.born],
        }


def read(transaction, message, aged, several):
    """Take a bounce to pieces as the recorder did."""
    body = bytes(message)[len(message.header) + 1 :]
    intro, rest = body.split(b"\n\n", 1)
    paragraphs = []
    while not rest.startswith(b"-"):
        one, rest = rest.split(b"\n\n", 1)
        paragraphs.append(one.rstrip(b"\n"))
        rest = rest.removeprefix(b"\n")
    original = rest.split(b"\n\n", 1)[1]
    names = [name for name, _ in message.fields()]
    paragraphs = sorted(paragraphs) if several else paragraphs
    return {
        "sender": str(transaction.sender),
        "recipients": [str(one.address) for one in transaction.recipients],
        "header_names": names,
        "from": message.values("From")[0],
        "to": message.values("To")[0],
        "intro_qsbmf": intro.startswith(b"Hi. This is the"),
        "intro_lines": intro.count(b"\n") + 1,
        "paragraphs": [taken_apart(one) if aged else vectors.as_text(one) for one in paragraphs],
        "break_starts_with_dash": rest.startswith(b"-"),
        "original": vectors.as_text(original),
    }


def taken_apart(paragraph):
    first, report, *extra = paragraph.decode().split("\n")
    return {"first_line": first, "report": report, "extra_lines": len(extra)}


def wanted(case):
    expect = dict(case["expect"])
    if len(case["input"]["recipients"]) > 1:
        expect["bounces"] = [{**one, "paragraphs": sorted(one["paragraphs"])} for one in expect["bounces"]]
    return expect


@pytest.mark.parametrize("case", vectors.cases("bounce"))
async def test_bounce(case, tmp_path, request):
    if "queue_exit" in case["expect"]:
        pytest.skip("refused before the queue")
    vectors.compare(request, "bounce", case, await Run(case, tmp_path).result(), wanted(case))
