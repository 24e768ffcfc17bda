"""Header edits: what is told to an MTA does there what a plugin did here; indexes count as filters do."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import MilterError
from gateway.message import Message
from gateway.milter import packets as p
from gateway.milter.content import Unwired, body_of, wired
from gateway.milter.edits import Fields, header_edits, split_fields

RECEIVED = b"Received: by the MTA\n"
FIELDS = [b"A: 1\n", b"B: x\n\ty\n", b"A: 2\n", b"C: 3\n"]


def told(before, after, *, leading_space=True):
    """Let an MTA that has its own Received on top do what it is told."""
    mta = Fields(RECEIVED + b"".join(before), 0, leading_space=leading_space)
    for edit in header_edits(before, after, leading_space=leading_space):
        mta.apply(edit)
    return mta.fields


@pytest.mark.parametrize(
    ("after", "edits"),
    [
        (FIELDS, []),
        ([b"N: new\n", *FIELDS], [p.InsertHeader(0, b"N", b" new")]),
        ([*FIELDS, b"N: new\n"], [p.AddHeader(b"N", b" new")]),
        ([b"N: 1\n", b"N: 2\n", *FIELDS], [p.InsertHeader(0, b"N", b" 1"), p.InsertHeader(1, b"N", b" 2")]),
        ([FIELDS[0], b"N: new\n", *FIELDS[1:]], [p.InsertHeader(2, b"N", b" new")]),
        ([*FIELDS[:2], FIELDS[3]], [p.ChangeHeader(2, b"A", b"")]),
        ([FIELDS[1], FIELDS[3]], [p.ChangeHeader(2, b"A", b""), p.ChangeHeader(1, b"A", b"")]),
        ([*FIELDS[:2], b"a: 9\n", FIELDS[3]], [p.ChangeHeader(2, b"a", b" 9")]),
        ([], [p.ChangeHeader(n, k, b"") for n, k in [(1, b"C"), (2, b"A"), (1, b"B"), (1, b"A")]]),
    ],
)
def test_each_change_is_told_by_the_edit_that_fits(after, edits):
    assert header_edits(FIELDS, after, leading_space=True) == edits


fields = st.lists(
    st.sampled_from([b"A: 1\n", b"A: 2\n", b"B: 1\n", b"C: 1\n\tfold\n", b"D:\n", b"D: 1\n"]), max_size=8
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(fields, fields, st.booleans())
def test_any_change_arrives_and_the_mtas_own_field_stays(before, after, leading_space):
    if not leading_space:
        before, after = ([f.replace(b"D:\n", b"D: \n") for f in one] for one in (before, after))
    done = told(before, after, leading_space=leading_space)
    assert RECEIVED in done
    assert [field for field in done if field is not RECEIVED and field != RECEIVED] == after


def test_what_stands_on_top_here_stands_on_top_there():
    assert told(FIELDS, [b"N: 1\n", b"M: 2\n", *FIELDS])[:3] == [b"N: 1\n", b"M: 2\n", RECEIVED]


def test_a_huge_header_is_compared_in_little_time():
    before = [b"A: %d\n" % n for n in range(2000)]
    assert told(before, before[::-1])[1:] == before[::-1]


@pytest.mark.parametrize(
    ("edit", "result"),
    [
        (p.InsertHeader(0, b"N", b"v"), "NRabac"),
        (p.InsertHeader(1, b"N", b"v"), "RNabac"),
        (p.InsertHeader(2, b"N", b"v"), "RaNbac"),
        (p.InsertHeader(99, b"N", b"v"), "RabacN"),
        (p.AddHeader(b"N", b"v"), "RabacN"),
        (p.ChangeHeader(0, b"a", b""), "Rbac"),
        (p.ChangeHeader(1, b"A", b""), "Rbac"),
        (p.ChangeHeader(2, b"A", b""), "Rabc"),
        (p.ChangeHeader(3, b"A", b""), "Rabac"),
        (p.ChangeHeader(3, b"A", b"v"), "RabacA"),
        (p.ChangeHeader(2, b"A", b"v"), "RabAc"),
        (p.ChangeHeader(1, b"Received", b""), "Rabac"),
    ],
)
def test_indexes_count_as_filters_count(edit, result):
    block = Fields(b"Received: ours\na: 1\nb: 2\na: 3\nc: 4\n", 0)
    block.apply(edit)
    assert "".join(chr(field[0]) for field in block.fields) == result


def test_without_a_received_of_our_own_one_is_imagined_on_top():
    for index, result in [(0, "Nab"), (1, "Nab"), (2, "aNb"), (3, "abN")]:
        block = Fields(b"a: 1\nb: 2\n")
        block.apply(p.InsertHeader(index, b"N", b"v"))
        assert "".join(chr(field[0]) for field in block.fields) == result


def test_deleting_shifts_what_comes_after_as_in_postfix():
    block = Fields(b"a: 1\na: 2\na: 3\n")
    block.apply(p.ChangeHeader(1, b"a", b""))
    block.apply(p.ChangeHeader(1, b"a", b""))
    assert block.fields == [b"a: 3\n"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (b"v", b"X: v\n"),
        (b"a\r\n\tb", b"X: a\n\tb\n"),
        (b"a\n b\n", b"X: a\n b\n"),
        (b"", b"X: \n"),
    ],
)
def test_folds_come_in_many_ways(value, field):
    block = Fields(b"")
    block.apply(p.AddHeader(b"X", value))
    assert block.fields == [field]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X", b"a\nY: b"),
        (b"X", b"a\rb"),
        (b"X", b"a\0"),
        (b"X", b"a\n\n b"),
        (b"", b"v"),
        (b"X:Y", b"v"),
        (b"X\n", b"v"),
    ],
)
def test_one_field_cannot_be_two(name, value):
    with pytest.raises(MilterError):
        Fields(b"").apply(p.AddHeader(name, value))


def test_the_space_behind_the_colon_is_whose_it_was_agreed():
    assert Fields(b"A:  x\nB:y\n", leading_space=True).shown() == [(b"A", b"  x"), (b"B", b"y")]
    assert Fields(b"A:  x\nB:y\n").shown() == [(b"A", b" x"), (b"B", b"y")]
    block = Fields(b"", leading_space=True)
    block.apply(p.AddHeader(b"X", b"v"))
    assert bytes(block) == b"X:v\n"


def test_fields_are_split_at_their_folds():
    assert split_fields(b"".join(FIELDS)) == FIELDS
    assert split_fields(b"A: 1\nB: cut off") == [b"A: 1\n", b"B: cut off"]


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\r\r\n"])), st.integers(1, 4))
def test_line_ends_survive_any_cut(parts, width):
    whole = b"".join(parts)
    unwired = Unwired()
    pieces = [unwired.feed(whole[i : i + width]) for i in range(0, len(whole), width)]
    assert b"".join([*pieces, unwired.rest()]) == whole.replace(b"\r\n", b"\n")


def test_a_body_is_cut_into_pieces_that_fit_without_its_empty_line():
    message = Message(b"A: b\n", b"\nline\n" * 2)
    assert b"".join(body_of(message)) == b"line\n\nline\n"
    pieces = list(wired(body_of(message), 3))
    assert b"".join(pieces) == b"line\r\n\r\nline\r\n"
    assert {len(piece) for piece in pieces} == {3, 2}
    assert list(body_of(Message(b"A: b\n"))) == []
