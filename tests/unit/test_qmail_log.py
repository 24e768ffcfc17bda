"""The output format `qmail`: the shapes that log analysers know, their numbers, and hostile texts."""

import re

import pytest

from gateway import events
from gateway.journal import Journal
from gateway.journal.qmail import QmailLines
from gateway.log import Log
from gateway.settings import Concurrency, Output
from gateway.worker import Configuration, Worker

#: Every line of spec 5.7 that is written.
SHAPES = re.compile(
    r"status: (local \d+/\d+ remote \d+/\d+|exiting)"
    r"|new msg \d+|end msg \d+"
    r"|info msg \d+: bytes \d+ from <[!-~]*> qp \d+ uid \d+"
    r"|starting delivery \d+: msg \d+ to (local|remote) [!-~]*"
    r"|delivery \d+: (success|failure|deferral): [!-~]*"
    r"|bounce msg \d+ qp \d+|triple bounce: discarding bounce/\d+"
    r"|(warning|alert): .*"
)


@pytest.fixture
def lines_of(tmp_path):
    """Give `lines_of(*events)`: what the output writes for them."""

    def write(*told):
        log = Log([Output.model_validate({"to": str(tmp_path / "log"), "format": "qmail"})])
        journal = Journal(tmp_path / "journal", "mx", outputs=log.outputs)
        journal.open()
        log.start(journal.emit)
        for event in told:
            journal.emit(event)
        log.close()
        journal.close()
        return (tmp_path / "log").read_text("ascii").splitlines()

    return write


def accepted(message, **more):
    return events.MessageAccepted(message=message, **{"sender": "s@x.example", "size": 1234, **more})


def started(message, number=1, channel="local", recipient="r@y.example"):
    return events.DeliveryStarted(message=message, number=number, channel=channel, recipient=recipient)


def test_the_life_of_a_message_in_qmails_words(lines_of):
    told = lines_of(
        accepted("m1"),
        started("m1"),
        events.DeliveryDelivered(message="m1", number=1, channel="local", text="did 1+0+0"),
        started("m1", 2, "remote"),
        events.DeliveryDeferred(message="m1", number=2, channel="remote", text="no route\nsorry\n"),
        started("m1", 2, "remote"),
        events.DeliveryFailed(message="m1", number=2, channel="remote", text="550 100% no"),
        events.MessageBounced(message="m1", bounce="m2", recipients=("r@y.example",)),
        events.MessageFinished(message="m1"),
        accepted("m2", sender="", size=99),
    )
    uid = told[1].rpartition(" ")[2]
    assert told == [
        "new msg 1",
        f"info msg 1: bytes 1234 from <s@x.example> qp 1 uid {uid}",
        "starting delivery 1: msg 1 to local r@y.example",
        "status: local 1/20 remote 0/100",
        "delivery 1: success: did_1+0+0/",
        "status: local 0/20 remote 0/100",
        "starting delivery 2: msg 1 to remote r@y.example",
        "status: local 0/20 remote 1/100",
        "delivery 2: deferral: no_route/sorry/",
        "status: local 0/20 remote 0/100",
        "starting delivery 3: msg 1 to remote r@y.example",
        "status: local 0/20 remote 1/100",
        "delivery 3: failure: 550_100__no/",
        "status: local 0/20 remote 0/100",
        "bounce msg 1 qp 2",
        "end msg 1",
        "new msg 2",
        f"info msg 2: bytes 99 from <> qp 2 uid {uid}",
    ]


def test_numbers_are_small_and_used_again(lines_of):
    told = lines_of(
        accepted("a"),
        accepted("b"),
        accepted("c"),
        events.MessageFinished(message="b"),
        events.MessageDeleted(message="a"),
        accepted("d"),
        accepted("e"),
        accepted("f"),
    )
    assert [line for line in told if "info" not in line] == [
        *["new msg 1", "new msg 2", "new msg 3", "end msg 2", "end msg 1"],
        *["new msg 1", "new msg 2", "new msg 4"],
    ]
    assert [re.search(r"qp (\d+)", line)[1] for line in told if "qp" in line] == list("123456")


def test_what_did_not_begin_is_begun_first_and_what_expired_is_a_failure(lines_of):
    told = lines_of(
        events.DeliveryDeferred(message="old", number=3, channel="local", text="", recipient="r@y"),
        started("old", 3),
        events.MessageExpired(message="old", number=3, text="too long"),
        events.MessageBounced(message="old", reason="triple_bounce"),
    )
    assert [line for line in told if "status" not in line] == [
        "starting delivery 1: msg 1 to local r@y",
        "delivery 1: deferral: /",
        "starting delivery 2: msg 1 to local r@y.example",
        "delivery 2: failure: too_long/",
        "triple bounce: discarding bounce/1",
    ]


@pytest.mark.parametrize(
    "hostile", ["a\nend msg 1\n", "\r\x1b[31m\0 %n \x7f", "\udcff\ud800é\u2028", "> x <"]
)
def test_no_text_forges_a_line(lines_of, hostile):
    told = lines_of(
        accepted("m", sender=hostile),
        started("m", recipient=hostile),
        events.DeliveryFailed(message="m", number=1, text=hostile),
        events.JournalFull(error=hostile),
        events.PluginFailed(plugin="p", error=hostile),
    )
    assert len(told) == 8
    assert all(SHAPES.fullmatch(line) for line in told)
    assert told[-2].startswith("alert: journal.full: ")
    assert told[-1].startswith("warning: plugin.failed: ")


def test_every_event_that_there_is_fits_a_shape():
    writer = QmailLines(Concurrency)
    for name, kind in events.VOCABULARY.items():
        record = {"event": name, "severity": kind.SEVERITY, **kind(message="m", number=1).facts()}
        assert all(SHAPES.fullmatch(line) for line in writer.lines(record)), name


async def test_a_gateway_writes_it_with_its_own_limits(tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "site.yaml").write_text(
        "queue: {concurrency: {local: 7, remote: 9}}\njournal: {outputs: [{to: log, format: qmail}]}\n"
    )
    worker = Worker(Configuration.load(tmp_path / "conf.d"))
    await worker.start()
    await worker.stop()
    told = (tmp_path / "log").read_text().splitlines()
    assert told == ["status: local 0/7 remote 0/9", "status: exiting"]
