import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

PATH = Path(__file__).parents[2] / "plugins" / "dot_qmail" / "parser.py"
SPEC = importlib.util.spec_from_file_location("dot_qmail_parser_under_test", PATH)
parser = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = parser
SPEC.loader.exec_module(parser)


def kinds(text):
    return [(one.kind, one.text) for one in parser.parse(text)]


def test_each_kind_of_line():
    text = "# no\n./Maildir/\n./Mailbox\n/abs/\n|cat >x \n&a@b \nc@d\n& e@f\n+list\n+other\n\n  \n"
    assert kinds(text) == [
        ("maildir", "./Maildir/"),
        ("mbox", "./Mailbox"),
        ("maildir", "/abs/"),
        ("program", "cat >x"),
        ("forward", "a@b"),
        ("forward", "c@d"),
        ("forward", " e@f"),
        ("forward_only", ""),
    ]


@pytest.mark.parametrize("text", ["", "\n./Maildir/\n", " \t\n./Maildir/\n"])
def test_a_blank_first_line_is_an_error(text):
    with pytest.raises(parser.BlankFirstLineError):
        parser.parse(text)


def test_carriage_returns_and_leading_blanks_stay():
    assert kinds("./Maildir/\r\n x@y") == [("mbox", "./Maildir/\r"), ("forward", " x@y")]


def test_candidates_go_from_the_whole_extension_to_the_default():
    assert list(parser.candidates("-", "Foo-Ba.r")) == [
        (".qmail-foo-ba:r", None),
        (".qmail-foo-default", "Ba.r"),
        (".qmail-default", "Foo-Ba.r"),
    ]


@given(st.text(max_size=40))
def test_no_extension_leads_out_of_the_home(ext):
    for name, _ in parser.candidates("-", ext):
        assert name.startswith(".qmail-")
        assert "/../" not in f"/{name}/"


def test_variables_of_the_specification():
    assert parser.variables("joe-Foo-Bar.Baz-Qux", "a.b.c.d.example", "Foo-Bar.Baz-Qux") == {
        "LOCAL": "joe-Foo-Bar.Baz-Qux",
        "HOST": "a.b.c.d.example",
        "RECIPIENT": "joe-Foo-Bar.Baz-Qux@a.b.c.d.example",
        "EXT": "Foo-Bar.Baz-Qux",
        "HOST2": "a.b.c.d",
        "EXT2": "Bar.Baz-Qux",
        "HOST3": "a.b.c",
        "EXT3": "Qux",
        "HOST4": "a.b",
        "EXT4": "",
    }


@pytest.mark.parametrize(
    ("sender", "owner", "owner_default", "wanted"),
    [
        ("s@x", False, False, "s@x"),
        ("s@x", True, False, "List-owner@h"),
        ("s@x", True, True, "List-owner-@h-@[]"),
        ("", True, True, ""),
        ("#@[]", True, True, "#@[]"),
    ],
)
def test_owner_rules(sender, owner, owner_default, wanted):
    assert parser.owner_address(sender, "List", "h", owner=owner, owner_default=owner_default) == wanted


def test_no_variable_can_hold_a_second_header_line():
    assert parser.delivered_to("a\nBcc: x", "h") == "Delivered-To: a_Bcc: x@h\n"
    assert parser.return_path("a\nb@h").count("\n") == 1
    assert parser.from_line("a b\tc\n@h", 0.0) == "From a-b-c-@h Thu Jan 01 00:00:00 1970\n"


def test_a_loop_is_the_same_line_in_the_header():
    line = b"Delivered-To: joe@h\n"
    assert parser.is_loop(b"A: b\nDelivered-To: joe@h\n", line)
    assert parser.is_loop(line, line)
    assert not parser.is_loop(b"delivered-to: joe@h\nX-Delivered-To: joe@h\n", line)


@given(st.lists(st.sampled_from([b"From ", b">", b">From x", b"\n", b"a", b"From"]), max_size=20), st.data())
def test_mbox_quoting_does_not_depend_on_how_the_bytes_are_cut(pieces, data):
    whole = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    quoted = b"".join(parser.quote_mbox(parts))
    wanted = b"".join(
        (b">" if line.lstrip(b">").startswith(b"From ") else b"") + line
        for line in whole.splitlines(keepends=True)
    )
    assert quoted == wanted + (b"" if not wanted or wanted.endswith(b"\n") else b"\n")


def test_a_line_without_end_is_not_gathered_in_memory():
    pieces = list(parser.quote_mbox([b"From " + b"x" * 65536] * 40))
    assert max(map(len, pieces)) <= 3 * 65536
    assert b"".join(pieces).startswith(b">From x")
    assert b"".join(pieces).count(b">") == 1
