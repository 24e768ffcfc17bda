"""Addresses of the envelope: parsed as liberally as qmail does, written so that nothing can be slipped in."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.address import LONGEST, Address, lower, parse_path, quote_local_part
from gateway.errors import AddressError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=60)


@pytest.mark.parametrize(
    ("argument", "address", "rest"),
    [
        ("FROM:<a@b.example>", "a@b.example", ""),
        ("from:<a@b.example>", "a@b.example", ""),
        ("FROM: <a@b.example> SIZE=1 BODY=8BITMIME", "a@b.example", "SIZE=1 BODY=8BITMIME"),
        ("FROM:<>", "", ""),
        ("FROM:<> AUTH=<>", "", "AUTH=<>"),
        ("FROM:a@b.example SIZE=1", "a@b.example", "SIZE=1"),
        ("FROM:   a@b.example", "a@b.example", ""),
        ("FROM:", "", ""),
        ("FROM:Joe <a@b>", "a@b", ""),
        ("<a@b>", "a@b", ""),
        ("FROM:<@r1,@r2:a@b>", "a@b", ""),
        ("FROM:<@r1:@r2:a@b>", "@r2:a@b", ""),
        ("FROM:<@r1>", "", ""),
        ('FROM:<"a b\\"c"@b>', 'a b"c@b', ""),
        ('FROM:<"a>b"@c> SIZE=1', "a>b@c", "SIZE=1"),
        ("FROM:<a\\>b@c>", "a>b@c", ""),
        ('FROM:<"x@other.example">', "x@other.example", ""),
        ("FROM:<a@B.Example>", "a@B.Example", ""),
        ("FROM:<ü@b.example> SMTPUTF8", "ü@b.example", "SMTPUTF8"),
        ("FROM:a\\", "a", ""),
    ],
)
def test_paths_are_read_as_qmail_smtpd_reads_them(argument, address, rest):
    assert parse_path(argument, "FROM") == (address, rest)


def test_an_end_is_missed_but_where_any_keyword_will_do():
    with pytest.raises(AddressError, match="FROM:<address>"):
        parse_path("FROM:<a@b", "FROM")
    assert parse_path("FROM:<a@b", "") == ("a@b", "")


@pytest.mark.parametrize("argument", ["", "FROM", "FROM a@b", "TO:a@b", "x"])
def test_without_keyword_and_bracket_it_is_a_syntax_error(argument):
    with pytest.raises(AddressError, match="FROM:<address>"):
        parse_path(argument, "FROM")


@pytest.mark.parametrize("inside", ["a\0b@c", "a\rb@c", "a\nb@c", 'x"\r\n"@c'])
def test_what_would_break_a_line_is_refused(inside):
    with pytest.raises(AddressError, match="control character"):
        parse_path(f"TO:<{inside}>", "TO")


def test_length_counts_in_octets():
    domain = "@b.example"
    longest = "a" * (LONGEST - len(domain)) + domain
    assert parse_path(f"TO:<{longest}>", "TO")[0] == longest
    for more in (f"x{longest}", longest.replace("a", "ü", 1)):
        with pytest.raises(AddressError, match="longer"):
            parse_path(f"TO:<{more}>", "TO")


@given(TEXT)
@example("a@b> NOTIFY=NEVER")
@example('a"b\\@c')
@example("@b")
@example("a@b\\")
@example("a@")
@example("a b@c d")
@example("Kelvin\u212a@\u212a.example")
def test_what_is_written_is_read_again_as_the_same_address(text):
    address = Address(text)
    if len(bytes(address)) <= LONGEST:
        assert parse_path(f"FROM:<{address.quoted()}> SIZE=1", "FROM") == (address, "SIZE=1")


@given(st.binary(max_size=60))
def test_bytes_come_back_as_they_came(raw):
    assert bytes(Address.decode(raw)) == raw


@given(st.text(max_size=80), st.sampled_from(["FROM", "TO"]))
def test_any_text_is_an_address_or_an_address_error(text, keyword):
    try:
        address, _ = parse_path(text, keyword)
    except AddressError:
        return
    assert not set(address) & set("\0\r\n")


@pytest.mark.parametrize(
    ("address", "local_part", "domain"),
    [
        ("joe@Example.ORG", "joe", "example.org"),
        ("a@b@c", "a@b", "c"),
        ("joe", "joe", ""),
        ("joe@", "joe", ""),
        ("@c", "", "c"),
        ("", "", ""),
        ("JOE@[IPv6:2001:DB8::1]", "JOE", "[ipv6:2001:db8::1]"),
    ],
)
def test_the_last_at_sign_parts_local_part_and_domain(address, local_part, domain):
    assert (Address(address).local_part, Address(address).domain) == (local_part, domain)


def test_only_ascii_letters_lose_their_case():
    assert lower("ÄPFEL.Example") == "Äpfel.example"
    assert lower("\u212aelvin.example") != "kelvin.example"
    assert Address("u@\u212aelvin.example").domain != Address("u@Kelvin.example").domain


@pytest.mark.parametrize(
    ("local", "quoted"),
    [
        ("joe", "joe"),
        ("joe-list+x=y", "joe-list+x=y"),
        ("", '""'),
        ("a b", '"a b"'),
        (".a", '".a"'),
        ("a..b", '"a..b"'),
        ("a.", '"a."'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a@b", '"a@b"'),
    ],
)
def test_local_parts_are_quoted_where_they_must_be(local, quoted):
    assert quote_local_part(local) == quoted


@pytest.mark.parametrize("address", ["a@b> SIZE=1", "a@b c", 'a@b"', "a@b\t"])
def test_a_domain_cannot_end_the_path(address):
    written = Address(address).quoted()
    assert written.startswith('"')
    assert written.endswith('"')


def test_an_address_is_a_str():
    assert Address("a@b") == "a@b"
    assert {Address("a@b"): 1}["a@b"] == 1
    assert Address("ü@b").is_ascii is False
    assert Address("u@b").is_ascii is True
