"""`mailward address --batch`: many addresses at once, to compare two set-ups."""

import json
import os

import pytest

ADDRESSES = "# ours\ninfo@example.org\n\n  joe@example.net  \nx@elsewhere.example\n"


@pytest.fixture
def batch(site, tmp_path):
    """Give `batch(*arguments)`: what the command says of the three addresses."""
    (tmp_path / "addresses").write_text(ADDRESSES)
    return lambda *arguments, code=1: site.mailward(
        "address", "--batch", str(tmp_path / "addresses"), *arguments, code=code
    )


def test_each_address_is_one_line_with_every_step(batch, site):
    rows = [json.loads(line) for line in batch("--json").splitlines()]
    assert [(row["address"], row["arrives"]) for row in rows] == [
        ("info@example.org", True),
        ("joe@example.net", True),
        ("x@elsewhere.example", False),
    ]
    alone = site.mailward("address", "info@example.org", "--json")
    assert rows[0]["steps"] == [json.loads(line) for line in alone.splitlines()]
    steps = {step["stage"]: step for step in rows[0]["steps"]}
    assert steps["rewrite"]["plugin"] == "virtual_domains"
    assert steps["rewrite"]["rule"] == "conf.d/30-domains.yaml:3: example.org -> abc"


def test_the_same_setup_says_the_same_and_a_change_is_one_line_of_a_diff(batch, site):
    before = batch("--json").splitlines()
    assert batch("--json").splitlines() == before
    (site.home("abc") / ".qmail-info").write_text("&bob@example.net\n")
    after = batch("--json").splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


def test_without_json_each_line_names_its_address(batch):
    lines = batch().splitlines()
    assert {line.partition("\t")[0] for line in lines} == {
        "info@example.org",
        "joe@example.net",
        "x@elsewhere.example",
    }


def test_bytes_that_are_no_utf_8_are_addresses_too(site, tmp_path):
    (tmp_path / "addresses").write_bytes(b"j\xf6rg@example.org\n")
    (row,) = site.mailward("address", "--batch", str(tmp_path / "addresses"), "--json").splitlines()
    assert json.loads(row)["address"] == os.fsdecode(b"j\xf6rg@example.org")


@pytest.mark.parametrize("arguments", [[], ["a@b", "--batch", "/dev/null"], ["--batch", "/nowhere"]])
def test_one_address_or_a_file(site, arguments):
    assert "Usage:" in site.mailward("address", *arguments, code=2)
