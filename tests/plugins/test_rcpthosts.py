"""rcpthosts: exactly our domains, and nothing else."""

import pytest

from gateway import Accept, ConfigError, Recipient, Stages

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
        "",
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
