import pytest

from gateway import Recipient, resolve
from gateway.errors import ConfigError
from gateway.testing import Bench

TABLE = """\
# left, right
Sales@Example.org, ann@example.org, bob@example.net
@old.example,@new.example
info@old.example,one@example.net
"""
YAML = "recipient_rewrite: {file: table.csv, before: [locals]}\nlocals: {domains: [example.org]}\n"


@pytest.fixture
def bench(tmp_path, contrib):
    (tmp_path / "table.csv").write_text(TABLE)
    made = Bench(tmp_path)
    made.add(contrib("recipient_rewrite"))
    return made


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("SALES@example.org", {"ann@example.org": "dot_qmail", "bob@example.net": "remote"}),
        ("Joe@old.example", {"Joe@new.example": "remote"}),
        ("info@old.example", {"one@example.net": "remote"}),
        ("other@example.org", {"other@example.org": "dot_qmail"}),
    ],
)
async def test_what_the_table_says_goes_the_way_of_any_other(bench, given, becomes):
    found = await resolve(bench.build(YAML).chain, Recipient.of(given))
    went = {one.recipient.address: one.route.plugin for one in found if one.route}
    assert went == becomes
    assert {one.recipient.original for one in found} == {given}


async def test_a_change_counts_at_once(bench, tmp_path):
    chain = bench.build(YAML).chain
    (tmp_path / "table.csv").write_text("sales@example.org,carol@example.net\n")
    (found,) = await resolve(chain, Recipient.of("sales@example.org"))
    assert (found.recipient.address, found.recipient.rule) == (
        "carol@example.net",
        f"{tmp_path}/table.csv:1: carol@example.net",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sales@example.org\n", "table.csv:1: write an address"),
        ("a@b,c@d\nsales,x@y\n", "table.csv:2: write an address"),
        ("a@b,c@d\nA@B,x@y\n", "table.csv:2: A@B stands in"),
    ],
)
def test_a_wrong_line_is_named(bench, tmp_path, text, said):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        bench.build(YAML)


def test_a_file_that_is_missing_is_named(bench):
    with pytest.raises(ConfigError, match=r"site.yaml:1: recipient_rewrite.file: .*No such file"):
        bench.build("recipient_rewrite: {file: nowhere.csv}")
