"""Who may say what when, and what both sides agree on."""

import pytest

from gateway.errors import MilterError
from gateway.milter import packets as p
from gateway.milter.packets import ALL_ACTIONS, ALL_STEPS, Actions, Steps
from gateway.milter.states import ALLOWED, Agreement, State, accept_offer, after

MESSAGE = [
    p.Mail(b"<a@b>"),
    p.Rcpt(b"<c@d>"),
    p.Rcpt(b"<e@f>"),
    p.Data(),
    p.Header(b"A", b"b"),
    p.EndOfHeaders(),
    p.Body(b"x"),
    p.EndOfMessage(),
]
OFFER = p.Negotiate(6, ALL_ACTIONS, ALL_STEPS)


def walk(*commands, start=State.IDLE):
    state, ended = start, []
    for command in commands:
        state, early = after(state, command)
        ended.append(early)
    return state, ended


def test_a_session_with_messages_goes_its_way():
    opening = [OFFER, p.Connect(b"h"), p.Helo(b"h")]
    state, ended = walk(*opening, *MESSAGE, *MESSAGE, p.Quit(), start=State.NEW)
    assert state is State.OVER
    assert not any(ended)


@pytest.mark.parametrize("until", range(1, len(MESSAGE)))
@pytest.mark.parametrize("command", [p.Abort(), p.Quit(), p.QuitForNext(), p.Mail(b"<>"), p.Helo(b"x")])
def test_a_message_that_is_broken_off_anywhere_is_told_as_such(until, command):
    _, ended = walk(*MESSAGE[:until], command)
    assert ended == [False] * until + [True]


def test_an_abort_when_there_is_nothing_to_end_is_harmless():
    assert walk(*MESSAGE, p.Abort(), p.Abort()) == (State.IDLE, [False] * (len(MESSAGE) + 2))


@pytest.mark.parametrize(
    ("state", "command"),
    [
        (State.NEW, p.Connect(b"h")),
        (State.AGREED, p.Mail(b"<>")),
        (State.IDLE, p.Connect(b"h")),
        (State.IDLE, p.Header(b"A", b"b")),
        (State.IDLE, OFFER),
        (State.MAIL, p.Body(b"")),
        (State.HEADER, p.Rcpt(b"<a@b>")),
        (State.BODY, p.Header(b"A", b"b")),
        (State.OVER, p.Helo(b"h")),
    ],
)
def test_a_command_out_of_its_place_is_a_protocol_error(state, command):
    with pytest.raises(MilterError):
        after(state, command)


def agreement(actions=ALL_ACTIONS, steps=0, version=6, macros=()):
    return Agreement(p.Negotiate(version, actions, steps, macros))


@pytest.mark.parametrize("bad", [{"version": 1}, {"version": 7}, {"actions": 0x200}])
def test_a_filter_that_asks_for_more_than_there_is_fails(bad):
    with pytest.raises(MilterError):
        agreement(**bad)


def test_unknown_bits_of_the_dialogue_are_ignored_and_known_ones_honoured():
    agreed = agreement(steps=0xFF000000 | Steps.NR_HEADER | Steps.NO_BODY)
    assert not agreed.sends(p.Body)
    assert not agreed.answers(p.Header)
    assert agreed.sends(p.Header)
    assert agreed.answers(p.Mail)


@pytest.mark.parametrize(
    ("bit", "kind"),
    [
        (Steps.NR_CONNECT, p.Connect),
        (Steps.NR_HELO, p.Helo),
        (Steps.NR_MAIL, p.Mail),
        (Steps.NR_RCPT, p.Rcpt),
        (Steps.NR_DATA, p.Data),
        (Steps.NR_HEADER, p.Header),
        (Steps.NR_EOH, p.EndOfHeaders),
        (Steps.NR_BODY, p.Body),
        (Steps.NR_UNKNOWN, p.Unknown),
    ],
)
def test_each_bit_silences_its_own_command_alone(bit, kind):
    agreed = agreement(steps=bit)
    silent = {one for one in ALLOWED if one is not p.Negotiate and not agreed.answers(one)}
    assert silent == {kind}


def test_old_filters_are_not_shown_what_they_do_not_know():
    assert not agreement(version=2).sends(p.Unknown)
    assert not agreement(version=3).sends(p.Data)
    assert agreement(version=4).sends(p.Data)


EDITS = [
    (p.AddHeader(b"a", b"b"), Actions.ADD_HEADERS),
    (p.ChangeHeader(1, b"a", b"b"), Actions.CHANGE_HEADERS),
    (p.ReplaceBody(b""), Actions.CHANGE_BODY),
    (p.AddRecipient(b"<a@b>"), Actions.ADD_RECIPIENTS),
    (p.DeleteRecipient(b"<a@b>"), Actions.DELETE_RECIPIENTS),
    (p.ChangeSender(b"<>"), Actions.CHANGE_SENDER),
]


@pytest.mark.parametrize(("edit", "bit"), EDITS)
def test_an_edit_needs_its_bit_and_the_end_of_the_message(edit, bit):
    agreement(actions=bit).check(p.EndOfMessage, edit)
    with pytest.raises(MilterError):
        agreement(actions=ALL_ACTIONS & ~bit).check(p.EndOfMessage, edit)
    for command in ALLOWED.keys() - {p.EndOfMessage}:
        with pytest.raises(MilterError):
            agreement().check(command, edit)


def test_nobody_is_discarded_at_the_door_and_nothing_skipped_at_the_end():
    for command, answer in [(p.Connect, p.Discard()), (p.Helo, p.Discard()), (p.EndOfMessage, p.Skip())]:
        with pytest.raises(MilterError):
            agreement().check(command, answer)
    for command in ALLOWED:
        with pytest.raises(MilterError):
            agreement().check(command, p.ConnectionFailed())


def test_our_filter_side_takes_no_more_than_it_is_offered():
    answer = accept_offer(p.Negotiate(6, Actions.ADD_HEADERS, Steps.NO_UNKNOWN), ((0, (b"j",)),))
    assert answer == p.Negotiate(6, Actions.ADD_HEADERS, Steps.NO_UNKNOWN)
    full = accept_offer(OFFER, ((0, (b"j",)),))
    assert full.macros == ((0, (b"j",)),)
    assert full.actions & ~ALL_ACTIONS == 0
    assert accept_offer(p.Negotiate(2, 0, 0), ()).version == 2
    with pytest.raises(MilterError):
        accept_offer(p.Negotiate(1, 0, 0), ())
