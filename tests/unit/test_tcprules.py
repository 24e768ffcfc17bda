"""The rules of tcpserver: syntax, ranges, order of look-up, and errors that name the line."""

import importlib.util
import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.testing.cdb import make_cdb

FILE = Path(__file__).parents[2] / "plugins" / "relay_control" / "tcprules.py"
SPEC = importlib.util.spec_from_file_location("tcprules_under_test", FILE)
tcprules = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = tcprules
SPEC.loader.exec_module(tcprules)


def parse(text):
    return tcprules.Rules.parse(text, "tcp.smtp")


def found(text, ip, host=None, info=None):
    rule = parse(text).find(ip, host, info)
    return rule and rule.address


WORKED_EXAMPLE = (
    "ann@192.0.2.5:allow\n192.0.2.9:allow\n:allow\n192.0.:allow\n"
    "=.corp.example:allow\n=:allow\n=w.example:deny\n"
)


@pytest.mark.parametrize(
    ("ip", "host", "info", "address"),
    [
        ("192.0.2.9", "x.corp.example", None, "192.0.2.9"),
        ("192.0.2.5", None, "ann", "ann@192.0.2.5"),
        ("192.0.2.5", "x.corp.example", "bob", "192.0."),
        ("198.51.100.1", "x.corp.example", None, "=.corp.example"),
        ("198.51.100.1", "a.x.corp.example", None, "=.corp.example"),
        ("198.51.100.1", "corp.example", None, "="),
        ("198.51.100.1", "y.example", None, "="),
        ("198.51.100.1", "w.example", None, "=w.example"),
        ("198.51.100.1", None, None, ""),
        ("2001:db8::1", None, None, ""),
    ],
)
def test_the_first_key_in_tcpservers_order_wins(ip, host, info, address):
    assert found(WORKED_EXAMPLE, ip, host, info) == address


def test_longest_prefix_first_and_only_at_dots():
    text = "1.:deny\n1.2.:deny\n1.2.3.:allow\n1.2.3:deny\n1.2.3.4:allow\n"
    assert found(text, "1.2.3.9") == "1.2.3."
    assert found(text, "1.2.30.9") == "1.2."
    assert found(text, "1.20.3.9") == "1."
    assert found(text, "1.2.3.40") == "1.2.3."
    assert found(text, "11.2.3.4") is None


def test_the_first_of_two_rules_for_one_address_counts():
    assert parse("1.2.3.4:deny\n1.2.3.4:allow\n").find("1.2.3.4", None).allow is False


def test_comments_blank_lines_and_lines_without_a_colon_say_nothing():
    rules = parse("# 1.2.3.4:deny\n\n   \n1.2.3.4\n\t\n5.6.7.8:allow \t\n")
    assert [rule.address for rule in rules] == ["5.6.7.8"]


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("192.0.2.8-11", ["192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.11"]),
        ("172.20-21.", ["172.20.", "172.21."]),
        ("10-11.2.", ["10.2.", "11.2."]),
        ("1.2.254-999", ["1.2.254", "1.2.255"]),
        ("1.2.5-3.", []),
        ("1-2.3-4.", ["1.3-4.", "2.3-4."]),
        ("=a-b.example", ["=a-b.example"]),
        ("joe@1.2.3.4-5", ["joe@1.2.3.4-5"]),
    ],
)
def test_ranges_are_written_out(address, keys):
    assert [rule.address for rule in parse(f"{address}:allow\n")] == keys


def test_a_huge_range_costs_no_more_than_one_octet():
    assert len(list(parse("1.2.0-99999999999999999999:allow\n"))) == 256


def test_variables_are_kept_in_order_with_any_quote():
    rule = parse(':allow,RELAYCLIENT="",DATABYTES=/100/,X="a,b:c",Y=|"|,X="2"\n').find("1.2.3.4", None)
    assert rule.variables == (
        ("RELAYCLIENT", ""),
        ("DATABYTES", "100"),
        ("X", "a,b:c"),
        ("Y", '"'),
        ("X", "2"),
    )
    assert rule.value("RELAYCLIENT") == ""
    assert rule.value("X") == "2"
    assert rule.value("QMAILQUEUE") is None


@pytest.mark.parametrize(
    "line",
    [
        ":permit",
        ":",
        ":ALLOW",
        ": allow",
        ":allowed",
        ":allow,X",
        ":allow,X=",
        ':allow,X="1',
        ':allow,X="1",',
        ':allow,X="1"junk',
        ":deny # why",
        ":allow\r",
        "1.2.3.x-5:allow",
        "1.2.3-y.:deny",
        "host-name:allow",
    ],
)
def test_what_tcprules_would_not_compile_is_an_error_with_file_and_line(line):
    with pytest.raises(ConfigError) as caught:
        parse(f"# first\n1.2.3.4:allow\n{line}\n")
    assert str(caught.value).startswith("tcp.smtp:3: ")


def test_every_bad_line_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(":allow,X\n1.:allow\n2.:forbid\n")
    assert [problem.place.line for problem in caught.value.problems] == [1, 3]


def test_a_rule_knows_its_place():
    assert str(parse("#\n10.1-2.:deny\n").find("10.2.3.4", None).place) == "tcp.smtp:2"


@pytest.mark.parametrize(
    ("text", "ip", "wanted"),
    [
        ("1.2.3.4:allow\n:deny\n", "1.2.3.4", False),
        ("1.2.3.4:allow\n:deny\n", "5.6.7.8", False),
        ("=.example:allow\n1.2.3.4:deny\n", "1.2.3.4", False),
        ("=.example:allow\n1.2.3.4:deny\n", "5.6.7.8", True),
        ("=:allow\n:deny\n", "5.6.7.8", True),
    ],
)
def test_a_name_is_wanted_only_when_it_could_change_the_answer(text, ip, wanted):
    assert parse(text).wants_name(ip) is wanted


def test_a_cdb_of_tcprules_says_the_same_as_its_source():
    source = '10.:allow,RELAYCLIENT="",DATABYTES="5"\n192.0.2.7:deny\n=.x.example:allow\n:allow,A="b"\n'
    records = [
        (b"10.", b"+RELAYCLIENT=\0+DATABYTES=5\0"),
        (b"192.0.2.7", b"D\0"),
        (b"=.x.example", b""),
        (b"", b"+A=b\0"),
    ]
    cdb = make_cdb(records).decode("utf-8", "surrogateescape")
    found, wanted = tcprules.Rules.parse(cdb, "tcp.cdb"), parse(source)
    for ip, host in (("10.1.2.3", None), ("192.0.2.7", None), ("192.0.2.9", "a.x.example"), ("1.2.3.4", "y")):
        got, expected = found.find(ip, host), wanted.find(ip, host)
        assert (got.address, got.allow, got.variables) == (
            expected.address,
            expected.allow,
            expected.variables,
        )
        assert str(got.place) == "tcp.cdb"
