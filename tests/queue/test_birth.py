"""What is known of a message from its birth on: the facts by which it is found, and its first events."""

from dataclasses import replace

import pytest

from gateway.queue.birth import described, told


@pytest.mark.parametrize(
    ("header", "subject", "message_id"),
    [
        (b"Subject: hello\nMessage-ID: <1@x.example>\n", "hello", "1@x.example"),
        (b"SUBJECT :  two\n\tlines \nmessage-id:1@x.example\n", "two lines", "1@x.example"),
        (b"Subject: first\nSubject: second\n", "first", ""),
        (b"X-Subject: no\nReceived: a\n Subject: no\n", "", ""),
        (
            b"Subject: =?utf-8?B?w4RwZmVs?= und\n =?iso-8859-1?q?Birnen_f=FCr?=\n",
            "\u00c4pfel und Birnen f\u00fcr",
            "",
        ),
        (b"Subject: =?utf-8?B?w4?= =?none?q?x?=\n", "=?utf-8?B?w4?= =?none?q?x?=", ""),
        (b"Subject: \xff\x00\n", "\ufffd\0", ""),
        (b"Subject:\n", "", ""),
        (b"", "", ""),
    ],
    ids=repr,
)
def test_subject_and_message_id_are_read_as_people_see_them(header, subject, message_id):
    assert described(header) == {"subject": subject, "message_id": message_id}


def test_what_is_kept_has_a_bound():
    assert {
        len(text)
        for text in described(b"Subject: " + b"x" * 10**6 + b"\nMessage-ID: <" + b"y" * 10**6).values()
    } == {500}


def test_an_accepted_message_is_told_with_its_facts(entry):
    facts = {"client_ip": "192.0.2.7", "message_id": "1@x", "subject": "private"}
    (event,) = told(entry(facts=facts), recovered=True)
    assert (event.NAME, event.client_ip, event.message_id, event.recovered) == (
        "message.accepted",
        "192.0.2.7",
        "1@x",
        True,
    )
    assert "private" not in str(event.facts())


def test_a_message_that_is_held_is_told_once_and_recipients_that_are_held_one_by_one(entry):
    def held(one, reason):
        return replace(one, state="held", recipient=replace(one.recipient, held=reason, held_by="scanner"))

    whole = entry("a@x.example", "b@x.example")
    whole.recipients = [held(one, "a virus?") for one in whole.recipients]
    _, event = told(whole)
    assert (event.NAME, event.reason, event.plugin, event.recipient) == (
        "message.held",
        "a virus?",
        "scanner",
        "",
    )
    part = entry("a@x.example", "b@x.example", "c@x.example")
    part.recipients[1:] = [held(one, f"reason {one.number}") for one in part.recipients[1:]]
    _, *events = told(part)
    assert [(one.recipient, one.number, one.reason) for one in events] == [
        ("b@x.example", 1, "reason 1"),
        ("c@x.example", 2, "reason 2"),
    ]
