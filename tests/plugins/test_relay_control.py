"""relay_control: who may connect and relay, by networks, confirmed names, limited clients and tcprules."""

import pytest

from gateway import Accept, ConfigError, Defer, DnsTemporary, Recipient, Reject, Stages

THERE = "u@elsewhere.example"


def named(ip, *names, back=None):
    """Give zones in which `ip` claims `names`; they point back to it, or to `back`."""
    reverse = ".".join(reversed(ip.split("."))) + ".in-addr.arpa"
    return {reverse: {"PTR": [f"{name}." for name in names]}} | {name: {"A": [back or ip]} for name in names}


@pytest.fixture
def ask(chain_of, transaction):
    """Give `ask(yaml, ip, ...)`: what the stage `relay` says."""

    async def relay(yaml, ip="203.0.113.9", sender="s@remote.example", address=THERE):
        chain = chain_of(yaml, "relay_control")
        return (await chain.ask(Stages.relay, transaction(ip, sender), Recipient.of(address))).value

    return relay


@pytest.fixture
def rules(tmp_path):
    """Give `rules(text)`: the settings that use it as rules file."""

    def write(text, more=""):
        (tmp_path / "tcp.smtp").write_text(text)
        return f"relay_control: {{rules: tcp.smtp{more}}}\n"

    return write


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "10.0.0.1", "203.0.113.9", ""])
async def test_by_default_nobody_relays_and_nobody_is_looked_up(chain_of, transaction, ip):
    chain = chain_of("", "relay_control")
    one = transaction(ip)
    assert (await chain.ask(Stages.connect, one.session)).value is None
    assert (await chain.ask(Stages.relay, one, Recipient.of(THERE))).value is None
    assert chain.dns.asked == []


NETWORKS = 'relay_control: {clients: [127.0.0.0/8, 192.0.2.7, "::1", "2001:db8::/32"]}\n'


@pytest.mark.parametrize(
    ("ip", "accepted"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.8", False),
        ("::1", True),
        ("::2", False),
        ("2001:db8:5::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("unknown", False),
    ],
)
async def test_networks(ask, ip, accepted):
    assert isinstance(await ask(NETWORKS, ip), Accept) is accepted


async def test_networks_need_no_name(chain_of, transaction):
    chain = chain_of(NETWORKS, "relay_control")
    await chain.ask(Stages.relay, transaction("203.0.113.9"), Recipient.of(THERE))
    assert chain.dns.asked == []


HOSTS = "relay_control: {clients: [mail.trusted.example, .Inner.example]}\n"


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("mail.trusted.example", True),
        ("MAIL.Trusted.Example", True),
        ("x.mail.trusted.example", False),
        ("trusted.example", False),
        ("a.inner.example", True),
        ("a.b.inner.example", True),
        ("inner.example", False),
        ("xinner.example", False),
        ("mail.trusted.example.evil.example", False),
    ],
)
async def test_host_names(ask, zones, name, accepted):
    zones.update(named("203.0.113.9", name))
    assert isinstance(await ask(HOSTS), Accept) is accepted


async def test_a_forged_name_gives_nothing(ask, zones):
    zones.update(named("203.0.113.9", "mail.trusted.example", back="192.0.2.1"))
    assert await ask(HOSTS) is None


@pytest.mark.parametrize("broken", ["9.113.0.203.in-addr.arpa", "mail.trusted.example"])
async def test_any_doubt_of_the_dns_means_no_relay(ask, zones, broken):
    zones.update(named("203.0.113.9", "mail.trusted.example"))
    zones[broken] = DnsTemporary
    assert await ask(HOSTS) is None


async def test_helo_gives_nothing(chain_of, transaction):
    chain = chain_of(HOSTS, "relay_control")
    one = transaction("203.0.113.9", helo="mail.trusted.example")
    assert (await chain.ask(Stages.relay, one, Recipient.of(THERE))).value is None


async def test_a_session_is_looked_up_once(chain_of, transaction, zones):
    zones.update(named("203.0.113.9", "mail.trusted.example"))
    chain = chain_of(HOSTS, "relay_control")
    one = transaction("203.0.113.9")
    for _ in range(3):
        assert isinstance((await chain.ask(Stages.relay, one, Recipient.of(THERE))).value, Accept)
    assert len(chain.dns.asked) == 2
    assert one.session.client.name == "mail.trusted.example"


LIMITED = (
    "relay_control: {clients: [{networks: [192.0.2.0/24], senders: [example.org, .example.org,"
    " joe@example.net], recipients: [partner.example]}, {networks: [192.0.2.9]}]}\n"
)


@pytest.mark.parametrize(
    ("ip", "sender", "address", "accepted"),
    [
        ("192.0.2.1", "a@example.org", "u@partner.example", True),
        ("192.0.2.1", "a@x.EXAMPLE.org", "u@partner.example", True),
        ("192.0.2.1", "Joe@example.net", "u@Partner.example", True),
        ("192.0.2.1", "jim@example.net", "u@partner.example", False),
        ("192.0.2.1", "a@example.org", "u@x.partner.example", False),
        ("192.0.2.1", "a@example.org", THERE, False),
        ("192.0.2.1", "", "u@partner.example", False),
        ("192.0.2.1", "a@example.org@evil.example", "u@partner.example", False),
        ("192.0.2.9", "jim@example.net", THERE, True),
        ("203.0.113.9", "a@example.org", "u@partner.example", False),
    ],
)
async def test_clients_with_rights_of_their_own(ask, ip, sender, address, accepted):
    assert isinstance(await ask(LIMITED, ip, sender, address), Accept) is accepted


async def test_the_null_sender_may_be_listed(ask):
    yaml = 'relay_control: {clients: [{networks: [192.0.2.1], senders: [""]}]}\n'
    assert isinstance(await ask(yaml, "192.0.2.1", ""), Accept)
    assert await ask(yaml, "192.0.2.1", "joe") is None


async def test_a_rate_is_counted_for_each_client_and_wears_off(chain_of, transaction, clock):
    chain = chain_of(
        "relay_control: {clients: [{networks: [192.0.2.0/24], max_rate: 2/m}]}\n", "relay_control"
    )

    async def relay(ip):
        return (await chain.ask(Stages.relay, transaction(ip), Recipient.of(THERE))).value

    assert [type(await relay("192.0.2.1")) for _ in range(3)] == [Accept, Accept, Defer]
    assert (await relay("192.0.2.1")).reason == "rate"
    assert isinstance(await relay("192.0.2.2"), Accept)
    clock.advance(121)
    assert isinstance(await relay("192.0.2.1"), Accept)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ("[192.0.2.7/24]", "host bits"),
        ("[10.0.]", "10.0."),
        ("[300.1.2.3]", "300.1.2.3"),
        ('["a b"]', "no host name"),
        ('["."]', "no host name"),
        ('[""]', "no host name"),
        ("[{senders: [example.org]}]", "needs networks or hosts"),
        ("[{networks: [192.0.2.1], max_rate: 5}]", "write a rate as"),
        ("[{networks: [192.0.2.1], senders: [a b]}]", "write joe@example.org"),
        ("[{network: [192.0.2.1]}]", "network"),
    ],
)
def test_a_client_that_cannot_be_meant_is_an_error_with_its_place(chain_of, clients, message):
    with pytest.raises(ConfigError, match=message) as caught:
        chain_of(f"relay_control: {{clients: {clients}}}\n", "relay_control")
    assert str(caught.value).startswith("conf.d/10.yaml:1: ")


async def test_the_rule_of_an_accept_names_the_setting(ask):
    assert (
        await ask("relay_control:\n  clients:\n  - 10.0.0.0/8\n  - 192.0.2.1\n", "192.0.2.1")
    ).rule == "conf.d/10.yaml:4"


RULES = """\
127.:allow,RELAYCLIENT=""
192.0.2.1:allow,RELAYCLIENT="@fix.me",DATABYTES="1000"
192.0.2.2:allow,DATABYTES="0"
192.0.2.3:allow
192.0.2.:deny
=.trusted.example:allow,RELAYCLIENT=""
=.spam.example:deny
"""


async def test_rules_give_relay_only_with_relayclient(ask, rules):
    yaml = rules(RULES)
    assert isinstance(await ask(yaml, "127.0.0.1"), Accept)
    assert await ask(yaml, "192.0.2.2") is None
    assert await ask(yaml, "192.0.2.3") is None
    assert await ask(yaml, "203.0.113.9") is None
    assert (await ask(yaml, "127.0.0.1")).recipient is None


@pytest.mark.parametrize("address", [THERE, "joe", "u@example.org", '"a b"@c'])
async def test_a_value_of_relayclient_is_appended_to_the_recipient(ask, rules, tmp_path, address):
    said = await ask(rules(RULES), "192.0.2.1", address=address)
    assert said.recipient.address == f"{address}@fix.me"
    assert said.recipient.address.domain == "fix.me"
    assert said.recipient.original == address
    assert said.rule == f"{tmp_path}/tcp.smtp:2"


@pytest.mark.parametrize(
    ("ip", "size"), [("192.0.2.1", 1000), ("192.0.2.2", 0), ("192.0.2.3", None), ("203.0.113.9", None)]
)
async def test_databytes_sets_the_size_limit_of_the_session(chain_of, transaction, rules, ip, size):
    session = transaction(ip).session
    await chain_of(rules(RULES), "relay_control").ask(Stages.connect, session)
    assert session.message_size == size


@pytest.mark.parametrize(
    ("value", "size"), [("12k", 12), ("-5", 0), ("", 0), ("x", 0), ("9" * 5000, 10**18 - 1)]
)
async def test_databytes_is_read_as_qmail_reads_it(chain_of, transaction, rules, value, size):
    session = transaction().session
    await chain_of(rules(f':allow,DATABYTES="{value}"\n'), "relay_control").ask(Stages.connect, session)
    assert session.message_size == size


async def test_a_deny_wins_over_clients_and_at_both_stages(chain_of, transaction, rules):
    chain = chain_of(rules(RULES, ", clients: [192.0.2.0/24]"), "relay_control")
    denied = transaction("::ffff:192.0.2.77")
    for answer in (
        await chain.ask(Stages.connect, denied.session),
        await chain.ask(Stages.relay, denied, Recipient.of(THERE)),
    ):
        assert isinstance(answer.value, Reject)
        assert (answer.value.status, answer.value.reason) == ("5.7.1", "denied")
        assert answer.value.rule.endswith("tcp.smtp:5")
    # Allowed by the rules without RELAYCLIENT: the clients decide.
    assert isinstance(
        (await chain.ask(Stages.relay, transaction("192.0.2.3"), Recipient.of(THERE))).value, Accept
    )


async def test_rules_by_name_count_only_confirmed_names(ask, rules, zones):
    zones.update(named("203.0.113.9", "mail.trusted.example"))
    zones.update(named("203.0.113.10", "x.trusted.example", back="203.0.113.99"))
    zones.update(named("203.0.113.11", "a.Spam.example"))
    yaml = rules(RULES)
    assert isinstance(await ask(yaml, "203.0.113.9"), Accept)
    assert await ask(yaml, "203.0.113.10") is None
    assert isinstance(await ask(yaml, "203.0.113.11"), Reject)


async def test_an_exact_address_is_decided_without_the_dns(chain_of, transaction, rules):
    chain = chain_of(rules(RULES), "relay_control")
    await chain.ask(Stages.connect, transaction("192.0.2.3").session)
    assert chain.dns.asked == []


async def test_a_deny_that_may_come_from_a_dns_failure_is_temporary(chain_of, transaction, rules, zones):
    zones["9.113.0.203.in-addr.arpa"] = DnsTemporary
    chain = chain_of(rules('=:allow,RELAYCLIENT=""\n:deny\n'), "relay_control")
    one = transaction("203.0.113.9")
    for answer in (
        await chain.ask(Stages.connect, one.session),
        await chain.ask(Stages.relay, one, Recipient.of(THERE)),
    ):
        assert isinstance(answer.value, Defer)
        assert answer.value.status == "4.7.1"


async def test_a_session_that_is_not_from_the_network_meets_no_rule(chain_of, transaction, rules):
    chain = chain_of(rules(":deny\n"), "relay_control")
    assert (await chain.ask(Stages.connect, transaction("").session)).value is None


def test_a_broken_rules_file_is_an_error_with_its_line(chain_of, rules, tmp_path):
    with pytest.raises(ConfigError) as caught:
        chain_of(rules("127.:allow\n10.:permit\n"), "relay_control")
    assert str(caught.value).startswith(f"{tmp_path}/tcp.smtp:2: ")


def test_a_missing_rules_file_is_an_error_with_the_place_of_the_setting(chain_of):
    with pytest.raises(ConfigError, match=r"^conf.d/10.yaml:1: .*gone: No such file"):
        chain_of("relay_control: {rules: gone}\n", "relay_control")


@pytest.mark.parametrize("key", ["on_error: skip", "dry_run: true"])
def test_its_fault_can_never_open_the_relay(chain_of, key):
    with pytest.raises(ConfigError, match="relay takes no"):
        chain_of(f"relay_control: {{{key}}}\n", "relay_control")


async def test_a_changed_rules_file_counts_at_once_and_a_broken_one_defers(
    chain_of, transaction, rules, tmp_path
):
    chain = chain_of(rules(":allow\n"), "relay_control")
    assert (await chain.ask(Stages.connect, transaction().session)).value is None
    (tmp_path / "tcp.smtp").write_text("203.0.113.:deny\n")
    assert isinstance((await chain.ask(Stages.connect, transaction().session)).value, Reject)
    (tmp_path / "tcp.smtp").write_text("203.0.113.:broken-now\n")
    for one in (
        chain.ask(Stages.connect, transaction().session),
        chain.ask(Stages.relay, transaction(), Recipient.of(THERE)),
    ):
        assert isinstance((await one).value, Defer)
