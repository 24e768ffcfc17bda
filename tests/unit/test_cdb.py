"""cdb files as qmail's tools write them, and whatever else a file may hold."""

import random

import pytest

from gateway.controls.cdb import HEAD, Cdb, is_cdb
from gateway.testing.cdb import make_cdb

#: What tcprules of ucspi-tcp 0.88 makes of `10.:allow,A="b"`, its empty tables left out.
RECORDS = [(b"10.", b"+A=b\0"), (b"", b"D\0"), (b"10.", b"second")]


def test_the_first_record_of_a_key_counts():
    found = Cdb(make_cdb(RECORDS))
    assert (found.get(b"10."), found.get(b""), found.get(b"11.")) == (b"+A=b\0", b"D\0", None)
    assert list(found) == RECORDS


def test_every_record_of_a_large_file_is_found():
    source = random.Random(7)
    records = {source.randbytes(source.randrange(1, 30)): source.randbytes(9) for _ in range(5000)}
    found = Cdb(make_cdb(records.items()))
    assert all(found.get(key) == value for key, value in records.items())
    assert found.get(b"not there at all, nor anything like it") is None


def test_an_empty_file_of_records_holds_nothing():
    found = Cdb(make_cdb([]))
    assert (found.get(b"a"), list(found)) == (None, [])


def test_a_text_is_no_cdb():
    assert is_cdb(make_cdb([]))
    assert not is_cdb(b"example.org\n" * 500)
    assert not is_cdb(b"")


@pytest.mark.parametrize("data", [b"", b"\0" * HEAD, b"\xff" * HEAD, make_cdb(RECORDS)[:-1]])
def test_what_is_not_whole_is_refused(data):
    with pytest.raises(ValueError, match="no cdb"):
        Cdb(data)


def test_damage_never_reads_outside_of_the_file():
    whole = make_cdb(RECORDS)
    source = random.Random(1)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(4):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            found = Cdb(bytes(data))
            found.get(b"10.")
            list(found)
        except ValueError:
            continue
