"""remote: routes, MX, one outcome for each recipient, and connections used again."""

import asyncio
import sys

import pytest

from gateway import (
    Address,
    ConfigError,
    Delivery,
    DnsTemporary,
    Entry,
    EntryRecipient,
    Message,
    Recipient,
    Route,
    Stages,
    own_addresses,
)
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
ANN = Address("ann@me.example")


def delivery(*recipients, sender="s@me.example", message=MESSAGE, params=None):
    rows = [EntryRecipient(number, Recipient.of(address)) for number, address in enumerate(recipients)]
    entry = Entry("entry-1", Address(sender), message, rows, 0.0, params=params or {})
    return Delivery("delivery-1", entry, Route("remote", "remote"), tuple(rows), Address(sender))


@pytest.fixture
async def remote(chain_of):
    """Give `remote(yaml)`: a function that delivers, with `.chain`."""
    chains = []

    def build(yaml=""):
        chain = chain_of(yaml, "remote")
        chains.append(chain)

        async def deliver(*recipients, **more):
            answer = await chain.ask_plugin("remote", Stages.deliver, delivery(*recipients, **more))
            assert not answer.failed, chain.emitted
            return answer.value

        deliver.chain = chain
        return deliver

    yield build
    for chain in chains:
        await chain.ask_plugin("remote", Stages.shutdown)


def route(host):
    return f'remote: {{routes: {{"": "127.0.0.1:{host.port}"}}}}\n'


def results(outcomes):
    return [(outcome.result, outcome.status) for outcome in outcomes]


# Routes

ROUTES = """
remote:
  routes:
    x.example: "10.0.0.1"
    .x.example: "10.0.0.2:26"
    .example: "[2001:db8::1]:27"
    free.example: ""
    bücher.example: "[192.0.2.1]"
    "[192.0.2.7]": "seven.example"
    "": {hosts: ["smart1.example.net:587", "smart2.example.net"]}
"""


@pytest.mark.parametrize(
    ("address", "destination"),
    [
        ("u@x.example", "10.0.0.1:25"),
        ("u@X.EXAMPLE", "10.0.0.1:25"),
        ("u@a.x.example", "10.0.0.2:26"),
        ("u@b.a.x.example", "10.0.0.2:26"),
        ("u@y.example", "[2001:db8::1]:27"),
        ("u@free.example", "free.example"),
        ("u@BÜCHER.example", "192.0.2.1:25"),
        ("u@xn--bcher-kva.example", "192.0.2.1:25"),
        ("u@[192.0.2.7]", "seven.example:25"),
        ("u@elsewhere.org", "smart1.example.net:587,smart2.example.net:25"),
        ("u", "smart1.example.net:587,smart2.example.net:25"),
    ],
)
async def test_the_first_key_that_is_there_decides(chain_of, address, destination):
    answer = await chain_of(ROUTES, "remote").ask(Stages.route, Recipient.of(address), ANN)
    assert answer.value == Route("remote", "remote", destination, answer.value.rule)


async def test_without_routes_the_domain_is_the_destination(chain_of):
    answer = await chain_of("", "remote").ask(Stages.route, Recipient.of("u@Example.ORG"), ANN)
    assert answer.value == Route("remote", "remote", "example.org")


async def test_an_smtproutes_file_and_inline_routes_that_win(chain_of, tmp_path):
    (tmp_path / "smtproutes").write_text(
        "# ours\nx.example:10.0.0.1:2525abc\nY.Example:[10.0.0.2]:26\n.example:relay.example\n"
        "free.example:\n[192.0.2.7]:seven:77\n:smart\n"
    )
    chain = chain_of('remote: {file: smtproutes, routes: {".example": "inline:1"}}\n', "remote")
    found = {}
    for domain in ("x.example", "y.example", "a.example", "free.example", "[192.0.2.7]", "other.org"):
        answer = await chain.ask(Stages.route, Recipient.of(f"u@{domain}"), ANN)
        found[domain] = answer.value.destination
    assert found == {
        "x.example": "10.0.0.1:2525",
        "y.example": "10.0.0.2:26",
        "a.example": "inline:1",
        "free.example": "free.example",
        "[192.0.2.7]": "seven:77",
        "other.org": "smart:25",
    }


@pytest.mark.parametrize(
    "yaml",
    [
        "remote: {routes: {x.example: 'host:port'}}",
        "remote: {routes: {x.example: 'host:0'}}",
        "remote: {routes: {x.example: 'host:65536'}}",
        "remote: {routes: {x.example: 'unix:/run/x'}}",
        "remote: {routes: {x.example: '[no]:25'}}",
        "remote: {routes: {u@x.example: host}}",
        "remote: {routes: {x.example: {host: a}}}",
        "remote: {routes: {x.example: {hosts: [a], user: me}}}",
        "remote: {file: missing}",
        "remote: {helo: 'two words'}",
        "remote: {tls: always}",
        "remote: {timeout: 0s}",
    ],
)
def test_wrong_settings_are_told_with_their_line(chain_of, yaml):
    with pytest.raises(ConfigError, match=r"conf\.d/10\.yaml:1"):
        chain_of(yaml + "\n", "remote")


def test_a_wrong_line_of_the_file_is_told(chain_of, tmp_path):
    (tmp_path / "smtproutes").write_text("x.example:a\ny.example:host:\n")
    with pytest.raises(ConfigError, match="smtproutes:2"):
        chain_of("remote: {file: smtproutes}\n", "remote")


# Where mail goes without a route

ZONES = {
    "two.example": {"MX": ["20 second.example.", "10 first.example."]},
    "equal.example": {"MX": ["10 first.example.", "10 second.example."]},
    "first.example": {"A": ["198.51.100.1"]},
    "second.example": {"A": ["198.51.100.2"], "AAAA": ["2001:db8:9::2"]},
    "plain.example": {"A": ["198.51.100.3"]},
    "null.example": {"MX": ["0 ."], "A": ["198.51.100.4"]},
    "servfail.example": DnsTemporary,
    "half.example": {"MX": ["10 servfail.example.", "20 second.example."]},
    "stuck.example": {"MX": ["10 servfail.example.", "20 gone.example."]},
    "lost.example": {"MX": ["10 gone.example."]},
    "self.example": {"MX": ["5 first.example.", "10 us.example.", "10 second.example.", "20 plain.example."]},
    "onlyself.example": {"MX": ["10 us.example.", "20 plain.example."]},
    "us.example": {"A": ["127.0.0.1"]},
    "mapped.example": {"AAAA": ["::ffff:127.0.0.1"]},
    "zero.example": {"A": ["0.0.0.0"]},
    "mine.example": {"A": ["203.0.113.77"]},
    "literal.example": {"MX": ["10 198.51.100.9."]},
    "xn--bcher-kva.example": {"MX": ["10 first.example."]},
    "many.example": {"MX": [f"{n} h{n}.example." for n in range(100)]},
    **{f"h{n}.example": {"A": [f"198.51.100.{m}" for m in range(1, 101)]} for n in range(100)},
}


@pytest.fixture
def find(chain_of, zones):
    """Give `await find(domain)`: the addresses that would be tried, or the status of the verdict."""
    zones.update(ZONES)
    chain = chain_of("", "remote")
    hosts = part_of("hosts")

    async def found(domain):
        hop = part_of("routes").Routes({}).hop(Address(f"u@{domain}"))
        answer = await hosts.find_targets(chain.dns, hop, lambda: {"203.0.113.77", "fd00::77"})
        return [one.target.ip for one in answer] if isinstance(answer, list) else answer.status

    return found


def part_of(name):
    """Find a file of the plugin as it was loaded last."""
    return [module for key, module in sys.modules.items() if "remote" in key and key.endswith(f".{name}")][-1]


@pytest.mark.parametrize(
    ("domain", "found"),
    [
        ("two.example", ["198.51.100.1", "198.51.100.2", "2001:db8:9::2"]),
        ("plain.example", ["198.51.100.3"]),
        ("bücher.example", ["198.51.100.1"]),
        ("half.example", ["198.51.100.2", "2001:db8:9::2"]),
        ("literal.example", ["198.51.100.9"]),
        ("[198.51.100.7]", ["198.51.100.7"]),
        ("198.51.100.7", ["198.51.100.7"]),
        ("[IPv6:2001:db8::7]", ["2001:db8::7"]),
        ("self.example", ["198.51.100.1"]),
        ("null.example", "5.1.10"),
        ("nowhere.example", "5.1.2"),
        ("a..b", "5.1.2"),
        ("servfail.example", "4.4.3"),
        ("stuck.example", "4.4.3"),
        ("lost.example", "5.4.4"),
        ("onlyself.example", "5.4.6"),
        ("us.example", "5.4.6"),
        ("mapped.example", "5.4.6"),
        ("zero.example", "5.4.6"),
        ("mine.example", "5.4.6"),
        ("[127.0.0.1]", "5.4.6"),
        ("[IPv6:fd00::77]", "5.4.6"),
        ("[IPv6:::1]", "5.4.6"),
        ("[2001:db8::7]", "5.1.3"),
        ("[192.0.2]", "5.1.3"),
        ("[192.0.2.1", "5.1.3"),
        ("[IPv6:192.0.2.1]", "5.1.3"),
        ("", "5.1.3"),
    ],
)
async def test_the_addresses_of_a_domain(find, domain, found):
    assert await find(domain) == found


async def test_equal_preferences_are_shuffled(find):
    assert {(await find("equal.example"))[0] for _ in range(60)} == {"198.51.100.1", "198.51.100.2"}


async def test_a_hundred_exchangers_with_a_hundred_addresses_are_bounded(find):
    assert len(await find("many.example")) == 400


def test_this_hosts_addresses_are_found():
    assert {"127.0.0.1", "::1"} <= own_addresses()


@pytest.mark.parametrize(
    ("address", "outcome"),
    [
        ("u@null.example", ("failed", "5.1.10")),
        ("u@nowhere.example", ("failed", "5.1.2")),
        ("u@servfail.example", ("deferred", "4.4.3")),
        ("u@us.example", ("failed", "5.4.6")),
        ("u", ("failed", "5.1.3")),
        ("u@", ("failed", "5.1.3")),
    ],
)
async def test_mail_that_has_nowhere_to_go(remote, zones, address, outcome):
    zones.update(ZONES)
    assert results(await remote()(address)) == [outcome]


async def test_mail_goes_to_the_mx(remote, zones, monkeypatch):
    zones["x.example"] = {"MX": ["10 dead.example.", "20 mx.example."]}
    zones["mx.example"] = zones["dead.example"] = {"A": ["127.0.0.1"]}
    async with ScriptedHost() as host:
        deliver = remote()
        monkeypatch.setattr(part_of("hosts"), "SMTP", host.port)
        monkeypatch.setattr(part_of("hosts"), "_is_own", lambda _ip, _own: False)
        [outcome] = await deliver("u@x.example")
    assert (outcome.result, outcome.peer) == ("delivered", f"dead.example[127.0.0.1]:{host.port}")


async def test_a_host_of_a_route_without_an_address_keeps_mail_waiting(remote):
    deliver = remote('remote: {routes: {"": {hosts: [gone.example, servfail.example]}}}\n')
    assert results(await deliver("u@x.example")) == [("deferred", "4.4.3")]


# Delivering


async def test_one_transaction_for_all_recipients_of_a_host(remote):
    async with ScriptedHost({"RCPT": ["250 a", "550 5.1.1 who", "450 4.2.0 later"]}) as host:
        outcomes = await remote(route(host))("a@x.example", "b@y.example", "c@x.example")
    assert results(outcomes) == [("delivered", "2.0.0"), ("failed", "5.1.1"), ("deferred", "4.2.0")]
    assert [outcome.number for outcome in outcomes] == [0, 1, 2]
    assert [outcome.reply for outcome in outcomes] == ["250 2.0.0 taken", "550 5.1.1 who", "450 4.2.0 later"]
    assert {outcome.peer for outcome in outcomes} == {f"127.0.0.1[127.0.0.1]:{host.port}"}
    assert "550 5.1.1 who" in outcomes[1].text
    assert len(host.contents) == 1


async def test_we_greet_with_our_name_or_the_one_set(remote):
    async with ScriptedHost() as host:
        await remote(route(host))("u@x.example")
        await remote(route(host).replace("{routes", "{helo: other.example, routes"))("u@x.example")
    assert [line for line in host.commands if line.startswith("EHLO")] == [
        "EHLO mx.example",
        "EHLO other.example",
    ]


async def test_many_recipients_travel_in_several_transactions_on_one_connection(remote):
    async with ScriptedHost() as host:
        outcomes = await remote(route(host))(*[f"u{number}@x.example" for number in range(250)])
    assert results(outcomes) == [("delivered", "2.0.0")] * 250
    assert (host.connections, len(host.contents)) == (1, 3)


@pytest.mark.parametrize(("sender", "wire"), [("", "<>"), ("#@[]", "<>"), ("s@me.example", "<s@me.example>")])
async def test_the_sender_on_the_wire(remote, sender, wire):
    async with ScriptedHost() as host:
        await remote(route(host))("u@x.example", sender=sender)
    assert f"MAIL FROM:{wire}" in host.commands


@pytest.mark.parametrize("fault", ["554 5.7.1 go away", "421 busy", None])
@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL"])
async def test_the_next_host_is_tried_while_nothing_is_taken(remote, step, fault):
    if fault == "554 5.7.1 go away" and step != "greeting":
        fault = "421 4.3.2 closing"
    async with ScriptedHost({step: fault}) as first, ScriptedHost() as second:
        hosts = f'["127.0.0.1:1", "127.0.0.1:{first.port}", "127.0.0.1:{second.port}"]'
        outcomes = await remote(f'remote: {{routes: {{"": {{hosts: {hosts}}}}}}}\n')("u@x.example")
    assert results(outcomes) == [("delivered", "2.0.0")]
    assert (first.connections, len(second.contents)) == (1, 1)


async def test_no_other_host_is_tried_once_one_has_decided(remote):
    async with ScriptedHost({".": None}) as first, ScriptedHost() as second:
        hosts = f'["127.0.0.1:{first.port}", "127.0.0.1:{second.port}"]'
        outcomes = await remote(f'remote: {{routes: {{"": {{hosts: {hosts}}}}}}}\n')("u@x.example")
    assert results(outcomes) == [("deferred", "4.4.2")]
    assert second.connections == 0


async def test_when_no_host_will_do_each_ones_reason_is_told(remote):
    async with ScriptedHost({"greeting": "554 5.7.1 go away"}) as host:
        hosts = f'["127.0.0.1:1", "127.0.0.1:{host.port}"]'
        [outcome] = await remote(f'remote: {{routes: {{"": {{hosts: {hosts}}}}}}}\n')("u@x.example")
    assert outcome.result == "deferred"
    assert outcome.status.startswith("4")
    assert "127.0.0.1]:1: no connection" in outcome.text
    assert "554 5.7.1 go away" in outcome.text


async def test_domains_with_hops_of_their_own_are_told_apart(remote):
    async with ScriptedHost() as one, ScriptedHost({"RCPT": "550 5.1.1 no"}) as other:
        yaml = f'remote: {{routes: {{one.example: "127.0.0.1:{one.port}", "": "127.0.0.1:{other.port}"}}}}\n'
        outcomes = await remote(yaml)("a@x.example", "b@one.example")
    assert {outcome.number: outcome.result for outcome in outcomes} == {0: "failed", 1: "delivered"}


async def test_ipv6(remote):
    async with ScriptedHost(host="::1") as host:
        [outcome] = await remote(f'remote: {{routes: {{"": "[::1]:{host.port}"}}}}\n')("u@x.example")
    assert (outcome.result, outcome.peer) == ("delivered", f"::1[::1]:{host.port}")


async def test_an_address_that_needs_smtputf8_fails_alone(remote):
    async with ScriptedHost() as host:
        outcomes = await remote(route(host))("ü@x.example", "u@x.example")
    assert results(outcomes) == [("failed", "5.6.7"), ("delivered", "2.0.0")]


async def test_eight_bit_is_declared_where_the_host_knows_the_word(remote):
    message = Message.parse("Subject: t\n\nü\n".encode())
    async with ScriptedHost({"EHLO": "250-x\r\n250 8BITMIME"}) as knows, ScriptedHost() as other:
        await remote(route(knows))("u@x.example", message=message)
        await remote(route(knows))("u@x.example")
        await remote(route(other))("u@x.example", message=message)
    assert [line for line in knows.commands if line.startswith("MAIL")] == [
        "MAIL FROM:<s@me.example> BODY=8BITMIME",
        "MAIL FROM:<s@me.example>",
    ]
    assert [line for line in other.commands if line.startswith("MAIL")] == ["MAIL FROM:<s@me.example>"]


async def test_by_lmtp_each_recipient_has_an_answer_of_its_own(remote):
    replies = "250 2.1.5 a has it\r\n452 4.2.2 b is full"
    async with ScriptedHost({"LHLO": "250 host.example", ".": replies}) as host:
        deliver = remote(f'remote: {{routes: {{"": "lmtp:127.0.0.1:{host.port}"}}}}\n')
        outcomes = await deliver("a@x.example", "b@x.example")
    assert results(outcomes) == [("delivered", "2.1.5"), ("deferred", "4.2.2")]
    assert host.commands[0] == "LHLO mx.example"


@pytest.mark.parametrize(
    ("host", "destination"),
    [
        ("lmtp:mda.example", "lmtp:mda.example:24"),
        ("lmtp:192.0.2.1", "lmtp:192.0.2.1:24"),
        ("lmtp:[2001:db8::1]:2400", "lmtp:[2001:db8::1]:2400"),
        ("lmtp:unix:/run/lmtp", "lmtp:unix:/run/lmtp"),
        ("lmtp:26", "lmtp:26"),
    ],
)
async def test_hosts_that_speak_lmtp(chain_of, host, destination):
    chain = chain_of(f'remote: {{routes: {{"": "{host}"}}}}\n', "remote")
    assert (await chain.ask(Stages.route, Recipient.of("u@x.example"), ANN)).value.destination == destination


async def test_we_speak_from_the_address_that_is_set(remote):
    seen = []

    async def greet(writer):
        seen.append(writer.get_extra_info("peername")[0])
        writer.write(b"220 hi\r\n")

    async with ScriptedHost({"greeting": greet}) as host:
        await remote(f'remote: {{source: [127.0.0.9], routes: {{"": "127.0.0.1:{host.port}"}}}}\n')("u@x")
        relay = f'{{hosts: ["127.0.0.1:{host.port}"], source: ["::1", 127.0.0.8]}}'
        await remote(f'remote: {{source: [127.0.0.9], routes: {{"": {relay}}}}}\n')("u@x")
    assert seen == ["127.0.0.9", "127.0.0.8"]


# Connections used again


async def test_a_connection_is_used_again(remote):
    async with ScriptedHost() as host:
        deliver = remote(route(host))
        for _ in range(3):
            assert results(await deliver("u@x.example")) == [("delivered", "2.0.0")]
        assert host.connections == 1


async def test_a_connection_that_died_meanwhile_costs_nothing(remote):
    async with ScriptedHost({".": ["250 2.0.0 ok\r\n421 4.4.2 idle", "250 2.0.0 ok"]}) as host:
        deliver = remote(route(host))
        for _ in range(2):
            assert results(await deliver("u@x.example")) == [("delivered", "2.0.0")]
        assert host.connections == 2


async def test_a_connection_that_dies_at_mail_costs_nothing(remote):
    async with ScriptedHost({"MAIL": ["250 ok", None, "250 ok"]}) as host:
        deliver = remote(route(host))
        for _ in range(2):
            assert results(await deliver("u@x.example")) == [("delivered", "2.0.0")]
        assert host.connections == 2


async def test_deliveries_at_a_time_have_connections_of_their_own(remote):
    async with ScriptedHost() as host:
        deliver = remote(route(host))
        outcomes = await asyncio.gather(*[deliver("u@x.example") for _ in range(5)])
        assert [outcome.result for [outcome] in outcomes] == ["delivered"] * 5
        assert host.connections == 5


async def test_idle_connections_end_with_the_plugin(remote):
    async with ScriptedHost() as host:
        deliver = remote(route(host))
        await deliver("u@x.example")
        await deliver.chain.ask_plugin("remote", Stages.shutdown)
        await asyncio.wait_for(host.ended.wait(), 5)
    assert host.commands[-1] == "QUIT"
