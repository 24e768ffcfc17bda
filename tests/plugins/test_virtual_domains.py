import pytest

from gateway import ConfigError, Recipient, resolve
from gateway.testing import Bench

CONF = """
locals: {domains: [local.example]}
virtual_domains:
  domains:
    example.org: abc
    joe@example.com: joe
    example.com: com
    .example.net: net
    not.example.net: ""
    local.example: dead
    "": catchall
"""


@pytest.fixture
def chain(tmp_path):
    return Bench(tmp_path).build(CONF).chain


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("Info@Example.ORG", "abc-Info@Example.ORG"),
        ("JOE@example.com", "joe-JOE@example.com"),
        ("ann@example.com", "com-ann@example.com"),
        ("u@a.b.example.net", "net-u@a.b.example.net"),
        ("u@example.net", "catchall-u@example.net"),
        ("a@b@example.org", "abc-a@b@example.org"),
        ("joe+tag@example.org", "abc-joe+tag@example.org"),
    ],
)
async def test_the_nearest_key_has_the_recipient(chain, address, wanted):
    (routed,) = await resolve(chain, Recipient.of(address))
    assert (routed.recipient.address, routed.recipient.claimed) == (wanted, "virtual_domains")
    assert routed.route.plugin == "dot_qmail"
    assert routed.route.channel == "local"


async def test_an_empty_value_is_an_exception_and_goes_to_remote(chain):
    (routed,) = await resolve(chain, Recipient.of("u@not.example.net"))
    assert routed.recipient.address == "u@not.example.net"
    assert routed.route.plugin == "remote"


async def test_a_local_domain_is_not_virtual(chain):
    (routed,) = await resolve(chain, Recipient.of("u@local.example"))
    assert (routed.recipient.address, routed.recipient.claimed) == ("u@local.example", "locals")


async def test_the_rule_names_file_and_line(chain):
    (routed,) = await resolve(chain, Recipient.of("u@example.org"))
    assert routed.recipient.rule == "conf.d/site.yaml:5: example.org -> abc"
    assert routed.route.rule == routed.recipient.rule


async def test_a_file_in_qmails_syntax_is_followed_while_it_changes(tmp_path):
    file = tmp_path / "virtualdomains"
    file.write_text("# ours\none.example:first\n")
    chain = (
        Bench(tmp_path).build("virtual_domains: {domains: {two.example: two}, file: virtualdomains}").chain
    )
    (routed,) = await resolve(chain, Recipient.of("u@one.example"))
    assert routed.recipient.address == "first-u@one.example"
    assert routed.recipient.rule == f"{file}:2: one.example -> first"
    file.write_text("one.example:second\ntwo.example:other\n")
    (routed,) = await resolve(chain, Recipient.of("u@one.example"))
    assert routed.recipient.address == "second-u@one.example"
    (routed,) = await resolve(chain, Recipient.of("u@two.example"))
    assert routed.recipient.address == "two-u@two.example"


async def test_a_file_that_vanishes_is_a_doubt_and_not_remote(tmp_path):
    file = tmp_path / "virtualdomains"
    file.write_text("one.example:first\n")
    chain = Bench(tmp_path).build("virtual_domains: {file: virtualdomains}").chain
    file.unlink()
    (routed,) = await resolve(chain, Recipient.of("u@one.example"))
    assert routed.failed


def test_a_missing_file_refuses_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"site.yaml:1: virtual_domains.file"):
        Bench(tmp_path).build("virtual_domains: {file: nowhere}")
