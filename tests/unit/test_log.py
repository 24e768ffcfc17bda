"""Outputs, and log lines of plugins and libraries as events."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from gateway.errors import ConfigError
from gateway.events import DeliveryDelivered, MessageAccepted, SessionOpened
from gateway.journal import Journal, read, stories
from gateway.log import BACKLOG, Log, StreamOutput
from gateway.settings import Output

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(tmp_path):
    """Make a gateway's log and journal: `log, journal, stop = started({"to": ..., "format": ...})`."""
    running = []

    def make(*outputs):
        log = Log([Output.model_validate(one) for one in outputs])
        journal = Journal(tmp_path / f"journal{len(running)}", "mx", outputs=log.outputs)
        journal.open()
        log.start(journal.emit)

        def stop():
            log.close()
            journal.close()
            return list(read(journal.folder))

        running.append(stop)
        return log, journal, stop

    yield make
    for stop in running:
        stop()


def test_a_line_of_a_plugin_is_an_event_with_what_it_added(started):
    log, _, stop = started()
    log.plugin("greylist").info("first seen", client="192.0.2.7", times=3, message="m1")
    (event,) = stop()
    assert (event["event"], event["plugin"], event["severity"]) == ("plugin.logged", "greylist", "info")
    assert event["text"] == "first seen"
    assert event["message"] == "m1"
    assert event["details"] == {"client": "192.0.2.7", "times": 3}


@pytest.mark.parametrize("level", ["info", "warning", "error", "critical"])
def test_each_level_is_a_severity(started, level):
    log, _, stop = started()
    getattr(log.plugin("p"), level)("x")
    assert [event["severity"] for event in stop()] == [level]


def test_debug_lines_are_left_out(started):
    log, _, stop = started()
    log.plugin("p").debug("x")
    assert stop() == []


def test_an_exception_comes_with_its_traceback(started):
    log, _, stop = started()
    try:
        {}["gone"]
    except KeyError:
        log.plugin("p").exception("cannot look up")
    (event,) = stop()
    assert event["severity"] == "error"
    assert "KeyError: 'gone'" in event["traceback"]


def test_what_a_plugin_logged_does_not_change_afterwards(started):
    log, _, stop = started()
    seen = ["a"]
    log.plugin("p").info("x", seen=seen)
    seen.append("b")
    assert stop()[0]["details"] == {"seen": ["a"]}


def test_what_a_plugin_says_of_a_message_is_in_its_story(started):
    log, journal, stop = started()
    journal.emit(MessageAccepted(message="m1"))
    log.plugin("p").warning("odd header", message="m1")
    stop()
    assert [one["event"] for one in stories(journal.folder, ["m1"])[0].events] == [
        "message.accepted",
        "plugin.logged",
    ]


def test_two_gateways_in_one_process_do_not_mix(started):
    before = structlog.get_config()
    log1, _, stop1 = started()
    log2, _, stop2 = started()
    log1.plugin("one").info("x")
    log2.plugin("two").info("x")
    assert [event["plugin"] for event in stop1()] == ["one"]
    assert [event["plugin"] for event in stop2()] == ["two"]
    assert structlog.get_config() == before


def test_warnings_of_libraries_are_events_and_what_clients_said_is_not(started):
    _, _, stop = started()
    logging.getLogger("asyncio").error("Task exception was never retrieved %s", "x")
    logging.getLogger("mail.log").info("%r >> %r", "peer", b"AUTH PLAIN secret")
    (first,) = stop()
    assert (first["event"], first["logger"], first["severity"]) == ("library.logged", "asyncio", "error")
    assert first["text"] == "Task exception was never retrieved x"


def test_a_closed_log_takes_no_more_from_libraries(started):
    log, journal, stop = started()
    handlers = list(logging.getLogger().handlers)
    log.close()
    assert len(logging.getLogger().handlers) == len(handlers) - 1
    journal.emit(SessionOpened())
    assert len(stop()) == 1


def test_a_json_output_is_the_journal_line_by_line(started, tmp_path):
    _, journal, stop = started({"to": str(tmp_path / "copy.jsonl"), "format": "json"})
    for number in range(100):
        journal.emit(
            DeliveryDelivered(message=str(number), recipient="joe@example.org", text="a\r\n\x1b[31m\u202e")
        )
    events = stop()
    copy = (tmp_path / "copy.jsonl").read_bytes()
    assert copy == next((tmp_path / "journal0").glob("*/*.jsonl")).read_bytes()
    assert [json.loads(line) for line in copy.splitlines()] == events
    assert len(events) == 100


def test_a_console_output_is_a_plain_line_an_event(started, tmp_path):
    _, journal, stop = started({"to": str(tmp_path / "copy.txt"), "format": "console"})
    journal.emit(
        DeliveryDelivered(message="0123456789", recipient="joe@example.org", text="a\r\n\x1b[31m\u202e\udcff")
    )
    journal.emit(SessionOpened(client_ip="192.0.2.1"))
    stop()
    first, second = (tmp_path / "copy.txt").read_text().splitlines()
    assert "delivery.delivered" in first
    assert "recipient=joe@example.org" in first
    assert first.isprintable()
    assert second.endswith("client.ip=192.0.2.1")


def test_an_output_that_cannot_be_opened_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"journal\.outputs.*nowhere"):
        Log([Output.model_validate({"to": str(tmp_path / "nowhere" / "x")})])


def test_with_a_stdout_output_nothing_else_is_printed(tmp_path):
    program = """
import asyncio, logging, pathlib, sys
from gateway.events import SessionOpened
from gateway.journal import Journal
from gateway.log import Log
from gateway.settings import Output

log = Log([Output(to="stdout", format="json")])
journal = Journal(pathlib.Path(sys.argv[1]), "mx", outputs=log.outputs)
journal.open()
log.start(journal.emit)
journal.emit(SessionOpened())
log.plugin("p").info("x")
logging.getLogger("mail.log").error("does not fit %d", "y")
logging.getLogger("mail.log").info("z")
journal.close()
"""
    run = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=True, cwd=ROOT)
    assert run.stderr == b""
    names = [json.loads(line)["event"] for line in run.stdout.splitlines()]
    assert names == ["session.opened", "plugin.logged", "library.logged"]


async def test_a_reader_that_stands_still_costs_the_journal_nothing_and_is_counted(tmp_path):
    reading, writing = os.pipe()
    output = StreamOutput("pipe", os.fdopen(writing, "wb"), "json")
    journal = Journal(tmp_path, "mx", outputs=[output])
    journal.open()
    for _ in range(6):  # more than the pipe and the backlog hold
        for _ in range(BACKLOG // 3):
            journal.emit(SessionOpened())
        start = time.monotonic()
        await journal.flush()
        assert time.monotonic() - start < 10
    with os.fdopen(reading, "rb") as reader:
        lines = [reader.readline()]
        journal.emit(SessionOpened(reason="caught up"))
        while b"output_slow" not in lines[-1]:
            lines.append(reader.readline())
            if b"caught up" not in lines[-1] and len(lines) % 1000 == 0:
                journal.emit(SessionOpened())
        dropped = json.loads(lines[-1])
        journal.close()
    seen = {json.loads(line)["sequence"] for line in lines}
    found = [one["sequence"] for one in read(tmp_path)]
    assert found == list(range(1, len(found) + 1))
    assert dropped["output"] == "pipe"
    missed = set(range(1, dropped["sequence"])) - seen
    assert dropped["count"] == len(missed) > 0
