import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gateway.settings.units import (
    Address,
    Duration,
    Endpoint,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_network,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("12h", 43200), ("7d", 604800), ("1.5h", 5400), ("0s", 0)]
)
def test_times_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["30", 30, "", "s", "-5m", "5 m", "5M", "2w", "1e3s", "inf", True, None, "9" * 400 + "d", "٣s"]
)
def test_a_time_needs_a_unit(text):
    with pytest.raises(ValueError, match="30s, 5m, 12h or 7d"):
        parse_duration(text)


def test_times_are_written_in_the_largest_unit_that_fits():
    written = [format_duration(s) for s in (0, 0.5, 30, 90, 300, 86400, 7 * 86400, 1_000_000)]
    assert written == ["0s", "0.5s", "30s", "90s", "5m", "1d", "7d", "1000000s"]


@given(st.integers(0, 999_999_999))
def test_a_time_reads_back_as_written(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("500", 500), (500, 500), ("64K", 65536), ("10M", 10 << 20), ("2G", 2 << 30)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "10MB", "10m", "-1", "1.5M", "M", None, "9" * 400, "0x10"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="500, 64K, 10M or 2G"):
        parse_size(text)


@given(st.integers(0, 10**15 - 1))
def test_a_size_reads_back_as_written(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("mail.example.org:25", Endpoint("mail.example.org", 25)),
        ("*:25", Endpoint("*", 25)),
        ("127.0.0.1:0", Endpoint("127.0.0.1", 0)),
        ("[::1]:2525", Endpoint("::1", 2525)),
        ("unix:/run/mailward/smtp", Endpoint("", 0, "/run/mailward/smtp")),
    ],
)
def test_addresses_read_back_as_written(text, endpoint):
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == text
    assert Endpoint.parse(endpoint) is endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "25",
        ":25",
        "*",
        "host",
        "::1:25",
        "[::1]",
        "[:::]:25",
        "a:65536",
        "a:-1",
        "a b:1",
        "unix:x",
        "/run/x:1",
        None,
    ],
)
def test_other_addresses_are_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 the library words the one about IPv6
        Endpoint.parse(text)


def test_networks():
    assert str(parse_network("192.0.2.7")) == "192.0.2.7/32"
    assert str(parse_network("2001:db8::/32")) == "2001:db8::/32"
    with pytest.raises(ValueError, match="host bits"):
        parse_network("192.0.2.7/24")


def test_settings_are_written_as_people_write_them():
    for kind, text in ((Duration, "12h"), (Size, "64K"), (Address, "[::1]:25")):
        adapter = TypeAdapter(kind)
        assert adapter.dump_python(adapter.validate_python(text), mode="json") == text
        with pytest.raises(ValidationError):
            adapter.validate_python("?")
