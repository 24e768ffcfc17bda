"""A thousand values that mean harm, in every place where the gateway writes what others say.

No template gives a second header field, a second command or reply, or a second line of a log.
"""

import dataclasses
import email
import importlib.util
import itertools
import json
import random
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gateway import Address, Message, Recipient, Stages, events
from gateway.envelope import Entry, Failure, Notice
from gateway.errors import MilterError
from gateway.journal import Journal, read
from gateway.journal.story import Story, render
from gateway.log import Log
from gateway.message import field_bytes
from gateway.milter import packets
from gateway.milter.edits import Fields
from gateway.settings import Output
from gateway.smtp.dialogue import Dialogue
from gateway.smtp.reply import Reply
from gateway.smtp.talk import Envelope, Pour, Say
from gateway.smtp.wire import RemoteReply

PATH = Path(__file__).parents[2] / "plugins" / "dot_qmail" / "parser.py"
SPEC = importlib.util.spec_from_file_location("dot_qmail_parser_injected", PATH)
parser = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = parser
SPEC.loader.exec_module(parser)

COUNT = 1000
HARM = [
    *["\n", "\r", "\r\n", "\n\n", "\r\n\r\n", "\n ", "\n\t", "\0", "\x0b", "\x0c", "\x1b[2J", "\x7f", "\x85"],
    *["\u2028", "\u2029", "\u202e", "\udcff", "\U0001f4a5", "é", "İ", "\ufeff"],
    *[
        "Bcc: v@evil.example",
        "\nX-Injected: y",
        "\r\nX-Injected: y\r\n\r\n",
        "\r\n.\r\nMAIL FROM:<x@evil>\r\n",
    ],
    *[
        "RCPT TO:<x@evil.example>",
        "250 ok",
        "\r\n250 2.0.0 ok",
        "550-",
        '"}\n{"event":"forged"}',
        "-->",
        "--report",
    ],
    *[
        "Action: delivered",
        "\n\nFinal-Recipient: rfc822; f@x",
        "--- Below this line",
        "\nFrom x",
        "=?utf-8?q?=0AX:?=",
    ],
    *[
        '"',
        "\\",
        "\\\n",
        '"\r\n',
        "<",
        ">",
        "(",
        ")",
        ";",
        ",",
        ":",
        "@",
        "%0a",
        "%n",
        "+0A",
        "${x}",
        "a",
        "a@b.example",
    ],
    *["x" * 300, " " * 80, "é" * 200],
]
DSN = {"NOTIFY": "SUCCESS,FAILURE,DELAY"}
#: Fields that a report may have at its top.
REPORT = ["Date", "From", "To", "Subject", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]


def made():
    chance = random.Random(5)
    return [
        "".join(chance.choice(HARM) for _ in range(chance.randrange(1, 6))) for _ in range(COUNT - len(HARM))
    ]


VALUES = [*HARM, *made()]
#: No byte that came in becomes one of these.
SURROGATES = ["\udc0d", "\ud800"]


def names(message):
    return [name for name, _ in Message.parse(bytes(message)).fields()]


def hostile(value, **params):
    return Recipient(Address(f"{value}@x.example"), Address(f"{value}@x.example"), params=params)


@pytest.mark.parametrize("form", ["qsbmf", "rfc3464"])
async def test_bounces(chain_of, clock, form):
    chain = chain_of(f"bounces: {{format: {form}}}", "bounces")
    expected = REPORT[:4] if form == "qsbmf" else REPORT
    for value in VALUES:
        params = {"ENVID": value} if form == "rfc3464" else {}
        entry = Entry("1", Address(f"{value}@r.example"), Message(b"A: b\n", b"\nx\n"), [], clock.time())
        entry.params = params
        failures = [Failure(hostile(value), value, value), Failure(Recipient.of("last@x.example"), "no\n")]
        birth = (await chain.ask(Stages.bounce, entry, failures)).value
        if form == "qsbmf":
            told = bytes(birth.message).partition(b"\n\n")[2].partition(b"\n\n---")[0] + b"\n"
        else:
            parsed = email.message_from_bytes(bytes(birth.message))
            kinds = [part.get_content_type() for part in parsed.get_payload()]
            assert kinds == ["text/plain", "message/delivery-status", "message/rfc822"], value
            assert len(parsed.get_payload(1).get_payload()) == 3, "the message and two recipients"
            told = bytes(birth.message)
        assert names(birth.message) == expected, value
        assert told.count(b"<last@x.example>:\nno\n") == 1
        assert not re.search(rb"(?m)^(X-Injected|Bcc):", bytes(birth.message).partition(b"\n\n")[0])


async def test_reports(chain_of, clock):
    chain = chain_of("bounces: {}", "bounces")
    for value, action in zip(VALUES, itertools.cycle(["delivered", "delayed"]), strict=False):
        entry = Entry("1", Address(f"{value}@r.example"), Message(b"A: b\n", b"\nx\n"), [], clock.time())
        entry.params = {"ENVID": value}
        one = hostile(value, ORCPT=f"rfc822;{value}", **DSN)
        birth = (await chain.ask(Stages.report, entry, [Notice(one, action, value, value, 1e9)])).value
        assert names(birth.message) == REPORT, value
        (message, recipient) = email.message_from_bytes(bytes(birth.message)).get_payload(1).get_payload()
        known = {"Original-Recipient", "Final-Recipient", "Action", "Status", "Diagnostic-Code", "Remote-MTA"}
        assert set(message.keys()) <= {"Original-Envelope-Id", "Reporting-MTA", "Arrival-Date"}, value
        assert set(recipient.keys()) <= known | {"Last-Attempt-Date", "Will-Retry-Until"}, value
        assert recipient["Action"] == action


@pytest.mark.parametrize("form", ["rfc", "qmail"])
async def test_received_and_the_fields_of_submission(chain_of, transaction, form):
    chain = chain_of(f"received: {{format: {form}}}", "received", "submission")
    for value in VALUES:
        one = transaction(helo=value, user=value, extended=True, tls="x", protocol="submission")
        one.session.client.name = value
        one.origin = "submission"
        one.recipients.append(Recipient.of(f"{value}@x.example"))
        raw = (
            b"Subject: " + re.sub(r"[\r\n]", "", value).encode("utf-8", "surrogateescape")
            if value.isascii()
            else b""
        )
        mail = Message.parse(raw.replace(b"\0", b"") + (b"\n" if raw else b"") + b"\nbody\n")
        done = (await chain.transform(Stages.incoming, one, mail)).value
        assert sorted(names(done)) == sorted(
            ["Received", "Date", "Message-ID", *(["Subject"] if raw else [])]
        ), value


def test_what_milters_and_plugins_add():
    for value in VALUES:
        raw = value.encode("utf-8", "surrogatepass")
        for name in (b"Authentication-Results", raw):
            for edit in (packets.AddHeader(name, raw), packets.InsertHeader(0, name, raw)):
                fields = Fields(b"Subject: x\n")
                try:
                    fields.apply(edit)
                except MilterError:
                    continue
                found = names(Message.parse(bytes(fields) + b"\nbody\n"))
                assert len(found) == 2, (name, value)
                assert "Subject" in found
        try:
            written = field_bytes("X-Plugin", value)
        except ValueError:
            continue
        assert names(Message.parse(written + b"\nbody\n")) == ["X-Plugin"], value


def test_what_is_put_in_front_of_a_delivery():
    for value in VALUES:
        lines = [parser.delivered_to(value, value), parser.return_path(f"{value}@{value}")]
        text = "".join(lines).encode("utf-8", "surrogatepass")
        assert names(Message.parse(text + b"\nbody\n")) == ["Delivered-To", "Return-Path"], value
        assert parser.from_line(value, 0.0).count("\n") == 1


def test_programs_get_what_they_shall_under_its_own_name():
    for value in VALUES:
        found = parser.variables(value, "x.example", value)
        found |= {"DTLINE": parser.delivered_to(value, "x.example"), "RPLINE": parser.return_path(value)}
        assert len(found) == 12
        assert found["RECIPIENT"] == f"{value}@x.example"
    harmless = [value for value in VALUES if "\0" not in value]
    for value in harmless[::40]:
        given = {"SENDER": value, **parser.variables(value, "x.example", value)}
        seen = subprocess.run(["/usr/bin/env", "-0"], env=given, capture_output=True, check=True).stdout
        pairs = dict(one.partition(b"=")[::2] for one in seen.split(b"\0")[:-1])
        assert pairs == {name.encode(): one.encode("utf-8", "surrogateescape") for name, one in given.items()}


def test_replies():
    for value in VALUES:
        for utf8 in (False, True):
            *lines, rest = Reply(550, "5.1.1", value).wire(utf8=utf8).split(b"\r\n")
            assert rest == b""
            assert all(re.fullmatch(rb"550[ -]5\.1\.1 [^\r\n\0]{0,1000}", line) for line in lines), value
            assert [line[3:4] for line in lines] == [b"-"] * (len(lines) - 1) + [b" "]


def commands(envelope):
    """Hear what is said to a host that takes everything."""
    dialogue, said = Dialogue("me.example"), []
    dialogue.extensions = dict.fromkeys(["SIZE", "8BITMIME", "SMTPUTF8", "DSN", "PIPELINING"], "")
    talk, answer = dialogue.transaction(envelope), None
    with suppress(StopIteration):
        while True:
            step = talk.send(answer)
            code = 354 if said and said[-1].endswith(b"DATA\r\n") else 250
            answer = None if isinstance(step, Say | Pour) else RemoteReply(code, ("ok",))
            said += [step.data] if isinstance(step, Say) else []
    return b"".join(said)


def test_commands_to_other_hosts():
    for value in VALUES:
        address = Address(f"{value}@x.example")
        for sender, recipient in ((address, Address("u@x.example")), (Address("s@x.example"), address)):
            params = {"RET": value, "ENVID": value}, ({"NOTIFY": value, "ORCPT": f"rfc822;{value}"},)
            said = commands(Envelope(sender, [recipient], 10, params=params[0], rcpt_params=params[1]))
            lines = said.split(b"\r\n")
            assert len(lines) in (1, 3, 4), (value, said)
            assert not any(octet in b"".join(lines) for octet in (b"\r", b"\n", b"\0")), (value, said)
            for line, start in zip(lines, (b"MAIL FROM:<", b"RCPT TO:<", b"DATA"), strict=False):
                assert line.startswith(start) or line == b"", (value, said)


def every_event(value):
    """Make an event of each kind that has the value wherever it may hold text."""
    for kind in events.VOCABULARY.values():
        texts = [one.name for one in dataclasses.fields(kind) if one.type in ("str", str)]
        yield kind(**dict.fromkeys(texts, value))


def test_every_kind_of_event_in_every_format(tmp_path):
    outputs = [{"to": str(tmp_path / form), "format": form} for form in ("json", "console", "qmail")]
    log = Log([Output.model_validate(one) for one in outputs])
    journal = Journal(tmp_path / "journal", "mx", outputs=log.outputs)
    journal.open()
    log.start(journal.emit)
    count = 0
    for number, value in enumerate([*SURROGATES, *VALUES]):
        told = list(every_event(value))
        for event in told if number < 10 else told[number % 20 :: 20]:
            journal.emit(event)
            count += 1
    log.close()
    journal.close()
    found = list(read(tmp_path / "journal"))
    written = (tmp_path / "json").read_text().splitlines()
    assert len(found) == len(written) == count
    for line in written:
        record = json.loads(line)
        assert record["event"] in events.VOCABULARY
        assert record["host"] == "mx"
    for form in ("console", "qmail"):
        lines = (tmp_path / form).read_bytes().decode("utf-8").split("\n")[:-1]
        assert [line for line in lines if not line.isprintable()] == [], form
        assert form == "qmail" or len(lines) == count
    story = list(render(Story("m", "", found[:2000], [])))
    assert all(line.isprintable() for line in story)
