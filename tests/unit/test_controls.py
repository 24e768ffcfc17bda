import os

import pytest

from gateway import controls
from gateway.errors import ConfigError, Place


def write(folder, content):
    path = folder / "control"
    path.write_bytes(content)
    return path


def test_line_reader_takes_the_first_line_without_trailing_blanks(tmp_path):
    assert controls.read_line(write(tmp_path, b"  one \t\ntwo\n")) == "  one"


def test_an_empty_file_is_an_empty_string_and_a_missing_one_is_none(tmp_path):
    assert controls.read_line(write(tmp_path, b"")) == ""
    assert controls.read_line(tmp_path / "absent") is None


@pytest.mark.parametrize(("content", "value"), [(b"12abc\n", 12), (b"-5\n", 7), (b" 3\n", 7), (b"", 7)])
def test_integer_reader_takes_the_leading_digits_or_the_default(tmp_path, content, value):
    assert controls.read_integer(write(tmp_path, content), 7) == value


def test_list_reader_keeps_leading_blanks_and_numbers_lines(tmp_path):
    path = write(tmp_path, b"#no\n\na.example # x\n  b.example\t\n #data\nlast")
    assert controls.read_list(path) == [
        (3, "a.example # x"),
        (4, "  b.example"),
        (5, " #data"),
        (6, "last"),
    ]


def test_list_reader_tells_an_empty_file_from_none(tmp_path):
    assert controls.read_list(write(tmp_path, b"")) == []
    assert controls.read_list(tmp_path / "absent") is None


def test_colon_map_lets_the_last_line_win_and_skips_lines_without_a_colon():
    lines = [(1, "A:one"), (2, "nocolon"), (3, "a:two:three"), (4, ":")]
    assert controls.colon_map(lines) == {"a": (3, "two:three"), "": (4, "")}


@pytest.mark.parametrize(
    ("domain", "keys"),
    [
        ("a.b.c", ["a.b.c", ".b.c", ".c"]),
        ("c", ["c"]),
        (".b.c", [".b.c", ".c"]),
        ("", [""]),
    ],
)
def test_domain_keys_are_the_domain_and_each_suffix_at_a_dot(domain, keys):
    assert list(controls.domain_keys(domain)) == keys


def test_a_control_file_is_read_again_when_it_changes(tmp_path):
    path = write(tmp_path, b"a.example\n")
    file = controls.ControlFile(path, controls.domain_table, "x.file", None)
    first = file.get()
    assert first == {"a.example": f"{path}:1"}
    assert file.get() is first
    path.write_bytes(b"#\nB.example\n")
    assert file.get() == {"b.example": f"{path}:2"}


def test_a_control_file_that_was_replaced_by_rename_is_read_again(tmp_path):
    path = write(tmp_path, b"a:one\n")
    file = controls.ControlFile(path, controls.account_table, "x.file", None)
    before = path.stat()
    other = tmp_path / "new"
    other.write_bytes(b"a:two\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert file.get() == {"a": ("two", f"{path}:1")}


def test_a_missing_control_file_is_an_error_with_its_setting_and_place(tmp_path):
    with pytest.raises(ConfigError) as caught:
        controls.ControlFile(tmp_path / "no", controls.domain_table, "locals.file", Place("conf.d/1.yaml", 3))
    assert "conf.d/1.yaml:3: locals.file" in str(caught.value)


def test_a_control_file_that_vanishes_raises_instead_of_answering_from_memory(tmp_path):
    path = write(tmp_path, b"a.example\n")
    file = controls.ControlFile(path, controls.domain_table, "x.file", None)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        file.get()
