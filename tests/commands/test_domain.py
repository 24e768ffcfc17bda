"""`mailward domain add`: one file that counts, or nothing."""

import pytest


def test_domain_add_writes_one_file_that_counts(site):
    site.home("new", default="./Maildir/\n")
    said = site.mailward("domain", "add", "Example.COM", "new", "--home", str(site.base / "home" / "new"))
    assert " reload" in said
    assert "warning" not in said
    assert [path.name for path in site.conf.iterdir() if "example.com" in path.name] == [
        "domain-example.com.yaml"
    ]
    assert "abc" not in (site.conf / "domain-example.com.yaml").read_text()
    assert "conf.d/domain-example.com.yaml:4" in site.mailward("address", "joe@example.com")
    assert "no warnings" in site.mailward("check")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["example.net", "abc"], "conf.d/30-domains.yaml:4: example.net is a virtual domain already"),
        (["mine.example", "abc"], "conf.d/50.yaml:1: mine.example is a local domain already"),
        (["new.example", "abc", "--home", "/elsewhere"], "conf.d/30-domains.yaml:7"),
        (["new.example", "nobdy"], "nobdy is an unknown account: add it"),
    ],
)
def test_domain_add_refuses_and_writes_nothing(site, arguments, said):
    site.write("50.yaml", "locals: {domains: [mine.example]}\n")
    before = sorted(site.conf.iterdir())
    assert said in site.mailward("domain", "add", *arguments, code=1)
    assert sorted(site.conf.iterdir()) == before


def test_a_domain_with_letters_beyond_ascii_is_added_as_senders_write_it_either_way(site):
    for typed, other, below in (
        ("B\xdccher.example", "xn--bcher-kva.example", ""),
        (".xn--kse-qla.example", ".k\xe4se.example", "shop"),
    ):
        site.mailward("domain", "add", typed, "abc")
        for name in (typed.lower(), other):
            assert "abc-joe@" in site.mailward("address", f"joe@{below}{name}")
            again = site.mailward("domain", "add", name, "xyz", code=1)
            assert f"{name} is a virtual domain already" in again
    assert "is no domain name" in site.mailward("domain", "add", f"{'a' * 64}.example", "abc", code=2)
    assert "no warnings" in site.mailward("check")
