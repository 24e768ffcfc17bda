import pytest

from gateway import Recipient, Stages
from gateway.testing import Bench


async def rewritten(tmp_path, conf, address):
    return (await Bench(tmp_path).build(conf).chain.transform(Stages.rewrite, Recipient.of(address))).value


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("u%x%d2@D1", "u@x"),
        ("u%x@other", "u%x@other"),
        ("u@d1", "u@d1"),
        ("u%d2@d1", "u@d2"),
        ("%@d1", "@"),
    ],
)
async def test_listed_domains_are_unwrapped(tmp_path, address, wanted):
    found = await rewritten(tmp_path, "percenthack: {domains: [d1, d2]}", address)
    assert found.address == wanted
    assert found.original == address


async def test_nothing_is_unwrapped_by_default(tmp_path):
    assert (await rewritten(tmp_path, "", "u%x@mail.example.org")).address == "u%x@mail.example.org"


async def test_an_address_without_a_domain_gets_one_first(tmp_path):
    assert (await rewritten(tmp_path, "", "u")).address == "u@mail.example.org"
    conf = "percenthack: {domains: [noat.example], envnoathost: noat.example}"
    assert (await rewritten(tmp_path, conf, "u%x")).address == "u@x"


async def test_the_rule_names_file_and_line(tmp_path):
    (tmp_path / "hack").write_text("#\nd1\n")
    found = await rewritten(tmp_path, "percenthack:\n  domains:\n  - d2\n  file: hack\n", "u%x@d1")
    assert found.rule == f"{tmp_path}/hack:2: d1"
    found = await rewritten(tmp_path, "percenthack:\n  domains:\n  - d2\n  file: hack\n", "u%x@d2")
    assert found.rule == "conf.d/site.yaml:3: d2"
