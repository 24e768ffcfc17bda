"""rcpthosts: exactly our domains, and nothing else."""

import pytest

from gateway import Accept, ConfigError, Recipient, Stages
from gateway.testing.cdb import make_cdb

OURS = "rcpthosts: {domains: [example.org, .example.net, Mixed.Example]}\n"


async def relay(chain, transaction, address):
    return (await chain.ask(Stages.relay, transaction(), Recipient.of(address))).value


@pytest.mark.parametrize(
    "address",
    [
        "u@example.org",
        "u@EXAMPLE.Org",
        "u@a.example.net",
        "u@a.b.example.net",
        "u@mixed.example",
        "victim@other.example@example.org",
        "user%other.example@example.org",
        "other.example!user@example.org",
        "@example.org",
        "u",
        "user%other.example",
    ],
)
async def test_our_domains_and_local_names_are_accepted(chain_of, transaction, address):
    assert isinstance(await relay(chain_of(OURS, "rcpthosts"), transaction, address), Accept)


@pytest.mark.parametrize(
    "address",
    [
        "u@",
        "u@x.example.org",
        "u@example.net",
        "u@xexample.net",
        "u@org",
        "u@.",
        "u@example.org.",
        "u@example.org ",
        "u@example.org@other.example",
        "u@[192.0.2.1]",
        "u@ex\u0430mple.org",
        "u@example.or\u212a",
        "u@examp\u2113e.org",
        "u@\uff45xample.org",
    ],
)
async def test_everything_else_gets_no_opinion(chain_of, transaction, address):
    assert await relay(chain_of(OURS, "rcpthosts"), transaction, address) is None


async def test_without_a_list_no_domain_is_ours(chain_of, transaction):
    assert await relay(chain_of("", "rcpthosts"), transaction, "u@mx.example") is None


async def test_a_qmail_file_counts_too_and_the_rule_names_its_line(chain_of, transaction, tmp_path):
    (tmp_path / "hosts").write_text("# ours\n\nlocal.example\n.Dom.example  \n  indented.example\n")
    chain = chain_of("rcpthosts: {domains: [example.org], file: hosts}\n", "rcpthosts")
    assert (await relay(chain, transaction, "u@a.dom.example")).rule == f"{tmp_path}/hosts:4: .dom.example"
    assert (await relay(chain, transaction, "u@example.org")).rule == "conf.d/10.yaml:1: example.org"
    assert await relay(chain, transaction, "u@indented.example") is None


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("rcpthosts: {file: gone}\n", "conf.d/10.yaml:1: .*gone: No such file"),
        ("rcpthosts: {file: .}\n", "conf.d/10.yaml:1: .*Is a directory"),
        ("rcpthosts: {domains: [u@example.org]}\n", "conf.d/10.yaml:1: .*no domain"),
        ('rcpthosts: {domains: [""]}\n', "conf.d/10.yaml:1: .*no domain"),
        ('rcpthosts: {domains: ["."]}\n', "conf.d/10.yaml:1: .*no domain"),
        ("rcpthosts: {on_error: skip}\n", "no on_error: skip"),
        ("rcpthosts: {dry_run: true}\n", "no dry_run"),
    ],
)
def test_settings_that_cannot_be_meant_are_errors(chain_of, yaml, message):
    with pytest.raises(ConfigError, match=message):
        chain_of(yaml, "rcpthosts")


async def test_a_compiled_list_counts_too(chain_of, transaction, tmp_path):
    (tmp_path / "more.cdb").write_bytes(make_cdb([(b"more.example", b""), (b".below.example", b"")]))
    chain = chain_of("rcpthosts: {domains: [example.org], cdb: more.cdb}\n", "rcpthosts")
    for address in ("u@More.example", "u@a.below.example", "u@example.org"):
        assert isinstance(await relay(chain, transaction, address), Accept)
    assert await relay(chain, transaction, "u@a.more.example") is None
    (tmp_path / "more.cdb").write_bytes(make_cdb([(b"other.example", b"")] * 2))
    assert await relay(chain, transaction, "u@more.example") is None
    assert (await relay(chain, transaction, "u@other.example")).rule == "more.cdb: other.example"


def test_a_list_that_is_no_cdb_is_told_at_start(chain_of, tmp_path):
    (tmp_path / "more.cdb").write_text("more.example\n")
    with pytest.raises(ConfigError, match=r"more\.cdb: is no cdb"):
        chain_of("rcpthosts: {cdb: more.cdb}\n", "rcpthosts")


LITERAL = "rcpthosts: {domains: [example.org], localiphost: example.org}\n"


@pytest.mark.parametrize(("ip", "taken"), [("127.0.0.1", True), ("127.0.0.01", True), ("192.0.2.99", False)])
async def test_an_address_of_this_host_is_the_domain_that_stands_for_it(chain_of, transaction, ip, taken):
    chain = chain_of(LITERAL, "rcpthosts")
    said = await relay(chain, transaction, f"u@[{ip}]")
    assert (said.recipient.address if said else None) == ("u@example.org" if taken else None)
    renamed = (await chain.transform(Stages.rewrite, Recipient.of(f"u@[{ip}]"))).value
    assert renamed.address == ("u@example.org" if taken else f"u@[{ip}]")


async def test_without_localiphost_such_an_address_is_nobodys(chain_of, transaction):
    assert await relay(chain_of(OURS, "rcpthosts"), transaction, "u@[127.0.0.1]") is None


async def test_a_sender_at_an_address_of_this_host_is_renamed_too(chain_of, transaction):
    mail = transaction(sender="me@[127.0.0.1]")
    await chain_of(LITERAL, "rcpthosts").ask(Stages.mail, mail)
    assert mail.sender == "me@example.org"
