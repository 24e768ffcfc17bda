"""Decisions: values that cannot carry a wrong status or a second reply."""

import dataclasses

import pytest

from gateway import Accept, Defer, Disconnect, Recipient, Reject


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Reject, "4.7.1"),
        (Defer, "5.7.1"),
        (Reject, "5.7"),
        (Reject, ""),
        (Defer, "4.7.1 x"),
        (Disconnect, "2.0.0"),
    ],
)
def test_a_status_of_another_class_is_refused(kind, status):
    with pytest.raises(ValueError, match="cannot carry"):
        kind(status, "no")


@pytest.mark.parametrize("status", ["4.7.0", "5.7.0"])
def test_a_disconnect_may_be_for_now_or_for_good(status):
    assert Disconnect(status, "bye").status == status


def test_the_text_is_one_line():
    assert Reject("5.7.1", " no\r\n250 ok\0\t").text == "no 250 ok"


def test_decisions_are_values_and_the_rule_does_not_tell_them_apart():
    assert Reject("5.7.1", "no", rule="a:1") == Reject("5.7.1", "no", rule="b:2")
    assert Reject("5.7.1", "no", reason="relay") != Reject("5.7.1", "no")
    assert Accept(rule="a:1") == Accept()
    assert Accept(recipient=Recipient.of("a@b")) != Accept()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Accept().rule = "x"
