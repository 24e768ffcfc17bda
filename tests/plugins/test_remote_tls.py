"""remote: what a TLS policy makes of each kind of host, DANE, and logins by route."""

import asyncio
import datetime as dt
import hashlib
import importlib.util
import itertools
import re
import ssl
import sys
from pathlib import Path

import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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
    TlsFailed,
)
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
STARTTLS = {"EHLO": "250-host.example\r\n250 STARTTLS", "STARTTLS": "220 go"}
NAME = "mx.x.example"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def context_of(leaf):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def hosts(authority):
    """Kinds of hosts: name -> (script, TLS of the host)."""
    late = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)

    async def break_off(writer):
        writer.write(b"220 go\r\n")
        await writer.drain()
        writer.close()

    return {
        "plain": ({}, None),
        "refuses": (STARTTLS | {"STARTTLS": "454 4.7.0 not now"}, None),
        "breaks": (STARTTLS | {"STARTTLS": break_off}, None),
        "good": (STARTTLS, context_of(authority.issue_cert(NAME))),
        "other name": (STARTTLS, context_of(authority.issue_cert("other.example"))),
        "expired": (STARTTLS, context_of(authority.issue_cert(NAME, not_after=late))),
        "unknown": (STARTTLS, context_of(trustme.CA().issue_cert(NAME))),
    }


@pytest.fixture
async def remote(chain_of, zones, authority, tmp_path):
    """Give `remote(host, **settings)`: a function that delivers to a host by its name, with `.chain`."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    zones.setdefault(NAME, {"A": ["127.0.0.1"]})
    chains = []

    def build(host, settings="tls: may", route=None):
        route = route or f'"{NAME}:{host.port}"'
        chain = chain_of(f'remote: {{ca_file: ca.pem, routes: {{"": {route}}}, {settings}}}\n', "remote")
        chains.append(chain)

        async def deliver(*recipients, params=None, sender="s@me.example", message=MESSAGE):
            rows = [
                EntryRecipient(number, Recipient.of(one))
                for number, one in enumerate(recipients or ["u@x.example"])
            ]
            entry = Entry("entry-1", Address(sender), message, rows, 0.0, params=params or {})
            delivery = Delivery("d-1", entry, Route("remote", "remote"), tuple(rows), entry.sender)
            answer = await chain.ask_plugin("remote", Stages.deliver, delivery)
            assert not answer.failed, chain.emitted
            return answer.value[0]

        deliver.chain = chain
        deliver.events = lambda: [event for event in chain.emitted if event.NAME.startswith("tls.")]
        return deliver

    yield build
    for chain in chains:
        await chain.ask_plugin("remote", Stages.shutdown)


def part_of(name):
    """Find a file of the plugin as it was loaded last."""
    return [module for key, module in sys.modules.items() if "remote" in key and key.endswith(f".{name}")][-1]


# The table of the plugin's page: how mail travels ("plain", "TLS"), or why it waits.

WAYS = {
    ("none", "good"): "plain",
    ("may", "plain"): "plain",
    ("may", "refuses"): "plain",
    ("may", "breaks"): "plain",
    ("may", "unknown"): "TLS",
    ("may", "expired"): "TLS",
    ("may", "good"): "TLS",
    ("encrypt", "plain"): "starttls-not-supported",
    ("encrypt", "refuses"): "starttls-not-supported",
    ("encrypt", "breaks"): "validation-failure",
    ("encrypt", "unknown"): "TLS",
    ("encrypt", "other name"): "TLS",
    ("verify", "plain"): "starttls-not-supported",
    ("verify", "refuses"): "starttls-not-supported",
    ("verify", "unknown"): "certificate-not-trusted",
    ("verify", "other name"): "certificate-host-mismatch",
    ("verify", "expired"): "certificate-expired",
    ("verify", "good"): "TLS",
    # Without records of DANE, and by a route without MTA-STS, these two are `may`.
    ("dane", "plain"): "plain",
    ("dane", "unknown"): "TLS",
    ("mta-sts", "refuses"): "plain",
    ("mta-sts", "unknown"): "TLS",
}


@pytest.mark.parametrize(("policy", "kind"), WAYS)
async def test_a_policy_and_a_host(policy, kind, remote, hosts):
    script, tls = hosts[kind]
    wanted = WAYS[policy, kind]
    async with ScriptedHost(script, tls=tls) as host:
        deliver = remote(host, f"tls: {policy}")
        outcome = await deliver()
    assert outcome.result == ("delivered" if wanted in ("plain", "TLS") else "deferred")
    assert ("over TLS" in outcome.text) == (wanted == "TLS")
    told = [(event.NAME, getattr(event, "result_type", "")) for event in deliver.events()]
    if wanted == "TLS":
        assert told == [("tls.established", "")]
        (event,) = deliver.events()
        assert event.version.startswith("TLS")
        assert (event.peer, event.policy) == (f"{NAME}[127.0.0.1]:{host.port}", policy)
        assert (event.server_name, event.source_ip) == (NAME, "127.0.0.1")
        assert event.verified == ("webpki" if policy == "verify" else "")
    elif wanted == "plain":
        assert told == ([("tls.failed", "validation-failure")] if kind == "breaks" else [])
    else:
        assert told == [("tls.failed", wanted)]
        assert (outcome.status, len(host.contents)) == (outcome.status, 0)
        assert outcome.status.startswith("4.7.")


async def test_only_may_falls_back_to_plain_and_by_a_connection_of_its_own(remote, hosts):
    script, tls = hosts["breaks"]
    async with ScriptedHost(script, tls=tls) as host:
        assert (await remote(host)()).result == "delivered"
        assert host.connections == 2
        assert (await remote(host, "tls: encrypt")()).result == "deferred"
        assert host.connections == 3


async def test_an_injected_reply_is_no_reason_to_go_on_in_plain(remote, hosts):
    async def inject(writer):
        writer.write(b"220 go\r\n250 EVIL\r\n")

    async with ScriptedHost(STARTTLS | {"STARTTLS": inject}, tls=hosts["good"][1]) as host:
        outcome = await remote(host)()
    assert (outcome.result, outcome.status, host.connections) == ("deferred", "4.7.0", 1)


async def test_policies_by_domain(remote, hosts):
    script, tls = hosts["unknown"]
    async with ScriptedHost(script, tls=tls) as host:
        deliver = remote(host, "tls: {x.example: verify, .x.example: none, y.example: encrypt}")
        wanted = {
            "x.example": "deferred",
            "a.x.example": "delivered",
            "y.example": "delivered",
            "z.example": "delivered",
        }
        assert {domain: (await deliver(f"u@{domain}")).result for domain in wanted} == wanted
    assert [event.policy for event in deliver.events()] == ["verify", "encrypt", "may"]


async def test_the_next_host_is_tried_when_one_does_not_keep_the_policy(remote, hosts):
    async with (
        ScriptedHost(hosts["unknown"][0], tls=hosts["unknown"][1]) as bad,
        ScriptedHost(hosts["good"][0], tls=hosts["good"][1]) as good,
    ):
        route = f'{{hosts: ["{NAME}:{bad.port}", "{NAME}:{good.port}"]}}'
        outcome = await remote(None, "tls: verify", route)()
    assert (outcome.result, len(bad.contents), len(good.contents)) == ("delivered", 0, 1)


async def test_the_policy_of_a_route_counts_before_that_of_the_domain(remote, hosts):
    script, tls = hosts["unknown"]
    async with ScriptedHost(script, tls=tls) as host:
        route = f'{{hosts: ["{NAME}:{host.port}"], tls: verify}}'
        assert (await remote(None, "tls: may", route)()).result == "deferred"


async def test_tls_from_the_first_byte(remote, hosts):
    heard = []

    async def serve(reader, writer):
        writer.write(b"220 host.example\r\n")
        while line := await reader.readline():
            heard.append(line)
            quiet = line[:1] in b"Sb\r"
            writer.write(b"354 go\r\n" if line == b"DATA\r\n" else b"" if quiet else b"250 ok\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=hosts["good"][1])
    route = f'{{hosts: ["{NAME}:{server.sockets[0].getsockname()[1]}"], implicit: true}}'
    for policy, verified in (("none", ""), ("may", ""), ("verify", "webpki")):
        deliver = remote(None, f"tls: {policy}", route)
        assert (await deliver()).result == "delivered"
        assert [(one.NAME, one.verified) for one in deliver.events()] == [("tls.established", verified)]
        await deliver.chain.ask_plugin("remote", Stages.shutdown)
    server.close()
    assert b"STARTTLS\r\n" not in heard


@pytest.mark.parametrize(
    ("where", "implicit"),
    [
        ('"a:465"', True),
        ('"a:587"', False),
        ('{hosts: ["a:465"], implicit: false}', False),
        ('{hosts: ["a:587"], implicit: true}', True),
    ],
)
async def test_at_port_465_tls_begins_with_the_first_byte(chain_of, zones, where, implicit):
    zones["a"] = {"A": ["192.0.2.1"]}
    chain = chain_of(f'remote: {{routes: {{"": {where}}}}}\n', "remote")
    plugin = chain.steps["deliver"][0].call.__self__
    hop = plugin._routes.hop(Address("u@x.example"))
    (candidate,) = await part_of("hosts").find_targets(plugin.dns, hop, set)
    way = await plugin._connector._guard.way(hop, candidate, None, strict=False)
    assert way.tries[0].implicit is implicit
    # Such a host does not speak in plain, so there is nothing to fall back to.
    assert len(way.tries) == (1 if implicit else 2)


def test_a_file_of_authorities_must_be_one(chain_of, tmp_path):
    for text in (None, "nothing"):
        if text:
            (tmp_path / "ca.pem").write_text(text)
        with pytest.raises(ConfigError, match=r"remote\.ca_file"):
            chain_of("remote: {ca_file: ca.pem}\n", "remote")


@pytest.mark.parametrize("page", ["docs/howto/remote-tls.md", "docs/plugins/remote.md"])
def test_the_settings_of_the_pages_are_taken(chain_of, tmp_path, page):
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    found = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    for name in ("smart", "ann"):
        (tmp_path / name).write_text("secret\n")
    for yaml in found:
        chain_of(yaml.replace("/etc/mailward/", ""), "remote")


# Logins


def smarthost(authority, *, name=NAME):
    ehlo = "250-host.example\r\n250-STARTTLS\r\n250 AUTH PLAIN"
    script = {"EHLO": ehlo, "STARTTLS": "220 go", "AUTH": "235 2.7.0 in"}
    return ScriptedHost(script, tls=context_of(authority.issue_cert(name)))


@pytest.mark.parametrize(
    ("name", "tls", "result"),
    [
        (NAME, "", "delivered"),
        ("other.example", "", "deferred"),
        ("other.example", ", tls: encrypt", "delivered"),
    ],
)
async def test_a_password_goes_to_a_host_that_is_who_it_says_unless_the_route_asks_for_less(
    remote, authority, tmp_path, name, tls, result
):
    (tmp_path / "secret").write_text("pass word\n")
    async with smarthost(authority, name=name) as host:
        route = f'{{hosts: ["{NAME}:{host.port}"], user: me, password_file: secret{tls}}}'
        outcome = await remote(None, "tls: none", route)()
    assert outcome.result == result
    logins = [line for line in host.commands if line.startswith("AUTH")]
    assert logins == (["AUTH PLAIN AG1lAHBhc3Mgd29yZA=="] if result == "delivered" else [])


async def test_a_refused_login_keeps_mail_waiting_and_shows_no_password(remote, authority, tmp_path):
    (tmp_path / "secret").write_text("sesame")
    async with smarthost(authority) as host:
        host._script["AUTH"] = ["535 5.7.8 no such user"]
        route = f'{{hosts: ["{NAME}:{host.port}"], user: me, password_file: secret}}'
        deliver = remote(None, "tls: may", route)
        outcome = await deliver()
    assert (outcome.result, outcome.status) == ("deferred", "4.7.8")
    assert "535 5.7.8 no such user" in outcome.text
    assert "sesame" not in f"{outcome} {deliver.chain.emitted}"


async def test_connections_are_shared_by_mail_of_one_policy_and_login_only(remote, authority, tmp_path):
    (tmp_path / "secret").write_text("sesame")
    async with smarthost(authority) as host:
        where = f'"{NAME}:{host.port}"'
        senders = (
            f"ann@me.example: {{hosts: [{where}], user: ann, password_file: secret}}, "
            f"bob@me.example: {{hosts: [{where}], user: bob, password_file: secret}}"
        )
        settings = f"tls: {{strict.example: verify}}, senders: {{{senders}}}"
        deliver = remote(None, settings, where)
        for sender, domain in [
            ("ann", "x"),
            ("bob", "x"),
            ("ann", "y"),
            ("cid", "x"),
            ("cid", "strict"),
            ("cid", "y"),
        ]:
            outcome = await deliver(f"u@{domain}.example", sender=f"{sender}@me.example")
            assert outcome.result == "delivered"
    # ann's two, bob's one, and cid's by two policies; the one by `may` was used again.
    assert host.connections == 4
    assert len([line for line in host.commands if line.startswith("AUTH")]) == 2


async def test_mail_that_needs_no_tls_has_connections_of_its_own(remote):
    """They may have been made on terms that are too weak for others (RFC 8689 section 5)."""
    message = Message.parse(b"TLS-Required: No\n\nbody\n")
    async with ScriptedHost() as host:
        deliver = remote(host, "tls: dane")
        for one in (message, MESSAGE, message, MESSAGE):
            assert (await deliver(message=one)).result == "delivered"
    assert host.connections == 2


async def test_a_password_goes_under_tls_whatever_the_sender_says(remote, tmp_path):
    (tmp_path / "secret").write_text("sesame")
    async with ScriptedHost() as host:
        route = f'{{hosts: ["{NAME}:{host.port}"], user: me, password_file: secret, tls: dane}}'
        deliver = remote(host, route=route)
        outcome = await deliver(message=Message.parse(b"TLS-Required: No\n\nbody\n"))
    assert (outcome.result, deliver.events()[0].policy) == ("deferred", "dane")


@pytest.mark.parametrize(
    "route",
    [
        "{hosts: [a], user: me}",
        "{hosts: [a], password: x}",
        "{hosts: [], user: me, password: x}",
        "{hosts: [a], user: me, password: x, tls: may}",
        "{hosts: [a], user: me, password: x, tls: none}",
        "{hosts: [a], user: me, password_file: missing}",
        "{hosts: [a], source: [mx.example]}",
        "{hosts: [a], tls: always}",
        "{hosts: ['lmtp:[no]:24']}",
        "{hosts: ['smtp:a:25']}",
    ],
)
def test_wrong_routes_are_told_with_their_line(chain_of, route):
    with pytest.raises(ConfigError, match=r"conf\.d/10\.yaml:1") as caught:
        chain_of(f"remote: {{routes: {{x.example: {route}}}}}\n", "remote")
    assert "password: x" not in str(caught.value)


# Routes by sender


SENDERS = """
remote:
  routes: {x.example: "10.0.0.1", "": "10.0.0.9"}
  senders: {Ann@Me.Example: "10.0.0.2", me.example: "10.0.0.3", .me.example: "10.0.0.4"}
  source: [192.0.2.1]
"""


@pytest.mark.parametrize(
    ("sender", "recipient", "host"),
    [
        ("ann@me.example", "u@x.example", "10.0.0.1:25"),
        ("ann@me.example", "u@y.example", "10.0.0.2:25"),
        ("ANN@ME.EXAMPLE", "u@y.example", "10.0.0.2:25"),
        ("bob@me.example", "u@y.example", "10.0.0.3:25"),
        ("bob@sub.me.example", "u@y.example", "10.0.0.4:25"),
        ("bob@other.example", "u@y.example", "10.0.0.9:25"),
        ("", "u@y.example", "10.0.0.9:25"),
    ],
)
async def test_the_sender_decides_where_the_domain_has_no_route(chain_of, sender, recipient, host):
    """Slots are counted by it, too."""
    answer = await chain_of(SENDERS, "remote").ask(Stages.route, Recipient.of(recipient), Address(sender))
    assert answer.value.destination == host


# DANE: the judge


def tlsa(certificate, usage, selector, matching):
    """Make a record's text for a certificate in PEM."""
    loaded = x509.load_pem_x509_certificate(certificate)
    data = loaded.public_bytes(Encoding.DER)
    if selector:
        data = loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    data = {0: data, 1: hashlib.sha256(data).digest(), 2: hashlib.sha512(data).digest()}[matching]
    return f"{usage} {selector} {matching} {data.hex()}"


def der(pem):
    return ssl.PEM_cert_to_DER_cert(pem.decode())


class Chain:
    """An authority, one below it, and a host's certificate."""

    def __init__(self, *names, **more):
        self.root = trustme.CA()
        self.middle = self.root.create_child_ca()
        self.leaf = self.middle.issue_cert(*(names or (NAME,)), **more)
        self.pem = {
            "root": self.root.cert_pem.bytes(),
            "middle": self.middle.cert_pem.bytes(),
            "leaf": self.leaf.cert_chain_pems[0].bytes(),
        }


@pytest.fixture(scope="module")
def chain():
    return Chain()


NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def dane():
    """Give the pure part by itself: it needs no chain."""
    path = Path(__file__).parents[2] / "plugins" / "remote" / "dane.py"
    spec = importlib.util.spec_from_file_location("alone_dane", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def judged(dane):
    """Give `judged(records, shown)`: "" when the certificates pass, or the kind of the failure."""

    def judge(records, shown, now=NOW, names=(NAME,)):
        made = []
        for text in records:
            usage, selector, matching, data = text.split(" ")
            made.append(dane.Record(int(usage), int(selector), int(matching), bytes.fromhex(data)))
        try:
            dane.judge(dane.usable(made), set(names), shown, now)
        except TlsFailed as error:
            return error.kind
        return ""

    return judge


def test_a_record_of_the_host_or_its_authority_lets_it_pass(judged, chain):
    shown = [der(chain.pem[name]) for name in ("leaf", "middle", "root")]
    other = Chain()
    kinds = itertools.product(((3, "leaf"), (2, "middle"), (2, "root")), (0, 1), (0, 1, 2))
    for (usage, name), selector, matching in kinds:
        record = tlsa(chain.pem[name], usage, selector, matching)
        assert judged([record], shown) == ""
        assert judged([tlsa(other.pem[name], usage, selector, matching)], shown) == "validation-failure"
        both = [tlsa(other.pem["leaf"], 3, 1, 1), record]
        assert judged(both, shown) == ""


def test_an_authority_that_is_not_shown(judged, chain):
    shown = [der(chain.pem["leaf"]), der(chain.pem["middle"])]
    assert judged([tlsa(chain.pem["root"], 2, 0, 0)], shown) == ""
    assert judged([tlsa(chain.pem["root"], 2, 0, 1)], shown) == "validation-failure"


def test_an_authority_that_did_not_sign_it(judged, chain):
    """The right authority is shown beside a certificate that another has signed."""
    shown = [der(Chain().pem["leaf"]), der(chain.pem["middle"]), der(chain.pem["root"])]
    for name in ("middle", "root"):
        assert judged([tlsa(chain.pem[name], 2, 1, 1)], shown) == "validation-failure"


def test_a_certificate_that_is_no_authority_signs_nothing(judged, chain):
    """A host with a certificate under the same authority cannot issue one for another name."""
    shown = [der(chain.pem["leaf"]), der(chain.pem["leaf"])]
    assert judged([tlsa(chain.pem["leaf"], 2, 1, 1)], shown) == "validation-failure"


@pytest.mark.parametrize(
    ("certified", "names", "usage", "kind"),
    [
        ("other.example", (NAME,), 2, "certificate-host-mismatch"),
        ("other.example", (NAME,), 3, ""),
        ("x.example", (NAME, "x.example"), 2, ""),
        ("*.x.example", (NAME,), 2, ""),
        ("*.example", (NAME,), 2, "certificate-host-mismatch"),
        ("MX.X.example", (NAME,), 2, ""),
    ],
)
def test_names_count_for_authorities_only(judged, certified, names, usage, kind):
    chain = Chain(certified)
    record = tlsa(chain.pem["leaf" if usage == 3 else "middle"], usage, 1, 1)
    shown = [der(chain.pem["leaf"]), der(chain.pem["middle"])]
    assert judged([record], shown, names=names) == kind


@pytest.mark.parametrize(("usage", "kind"), [(3, ""), (2, "certificate-expired")])
def test_dates_count_for_authorities_only(judged, usage, kind):
    chain = Chain(not_after=dt.datetime(2001, 1, 1, tzinfo=dt.UTC))
    record = tlsa(chain.pem["leaf" if usage == 3 else "middle"], usage, 1, 1)
    assert judged([record], [der(chain.pem["leaf"]), der(chain.pem["middle"])]) == kind


@pytest.mark.parametrize("shown", [[], [b""], [b"garbage"], [b"\x30\x82\x01\x00"]])
@pytest.mark.parametrize("usage", [2, 3])
def test_certificates_that_are_none(judged, chain, shown, usage):
    assert judged([tlsa(chain.pem["leaf"], usage, 1, 1)], shown) == "validation-failure"


def test_what_can_be_matched(dane):
    good = dane.Record(3, 1, 1, b"x" * 32)
    for bad in [
        (0, 1, 1, 32),
        (1, 1, 1, 32),
        (4, 1, 1, 32),
        (3, 2, 1, 32),
        (3, 1, 3, 32),
        (3, 1, 1, 31),
        (3, 1, 2, 32),
    ]:
        assert dane.usable([dane.Record(*bad[:3], b"x" * bad[3]), good]) == [good]
    # Of two digests the stronger counts; of each usage and selector by itself.
    strong, other = dane.Record(3, 1, 2, b"x" * 64), dane.Record(2, 1, 1, b"x" * 32)
    assert dane.usable([good, strong, other]) == [strong, other]


# DANE: on the way to a host


@pytest.fixture
async def dane_host(chain):
    async with ScriptedHost(STARTTLS, tls=context_of(chain.leaf)) as host:
        yield host


def publish(zones, host, *records, name=NAME, **more):
    zones[name] = {"A": ["127.0.0.1"], "secure": True}
    zones[f"_{host.port}._tcp.{name}"] = {"TLSA": list(records), "secure": True, **more}


async def test_a_host_with_the_certificate_that_dns_names(remote, zones, dane_host, chain):
    publish(zones, dane_host, tlsa(chain.pem["leaf"], 3, 1, 1))
    for policy in ("dane", "mta-sts"):
        deliver = remote(dane_host, f"tls: {policy}")
        assert (await deliver()).result == "delivered"
        (event,) = deliver.events()
        assert (event.NAME, event.verified, event.policy_type) == ("tls.established", "dane", "tlsa")


@pytest.mark.parametrize("policy", ["dane", "mta-sts"])
async def test_a_host_with_another_certificate_gets_nothing(remote, zones, dane_host, policy):
    publish(zones, dane_host, tlsa(Chain().pem["leaf"], 3, 1, 1))
    deliver = remote(dane_host, f"tls: {policy}")
    outcome = await deliver()
    assert (outcome.result, outcome.status) == ("deferred", "4.7.5")
    (event,) = deliver.events()
    assert (event.NAME, event.result_type, event.policy_type) == ("tls.failed", "validation-failure", "tlsa")
    assert (dane_host.contents, dane_host.connections) == ([], 1)


async def test_a_host_that_dns_names_must_offer_tls(remote, zones, chain):
    async with ScriptedHost() as host:
        publish(zones, host, tlsa(chain.pem["leaf"], 3, 1, 1))
        deliver = remote(host, "tls: dane")
        assert (await deliver()).result == "deferred"
    told = [(event.result_type, event.source_ip) for event in deliver.events()]
    assert told == [("starttls-not-supported", "127.0.0.1")]
    assert host.contents == []


async def test_records_that_cannot_be_matched_still_ask_for_tls(remote, zones, dane_host, chain):
    publish(zones, dane_host, tlsa(chain.pem["leaf"], 1, 1, 1))
    deliver = remote(dane_host, "tls: dane")
    assert (await deliver()).result == "delivered"
    assert [(one.verified, one.policy_type) for one in deliver.events()] == [("", "tlsa")]
    async with ScriptedHost() as plain:
        publish(zones, plain, tlsa(chain.pem["leaf"], 1, 1, 1))
        assert (await remote(plain, "tls: dane")()).result == "deferred"


@pytest.mark.parametrize("what", ["records", "address", "nothing"])
async def test_what_nobody_has_validated_counts_for_nothing(remote, zones, dane_host, what):
    publish(zones, dane_host, tlsa(Chain().pem["leaf"], 3, 1, 1), secure=what != "records")
    if what == "address":
        zones[NAME] = {"A": ["127.0.0.1"]}
    if what == "nothing":
        del zones[f"_{dane_host.port}._tcp.{NAME}"]
    deliver = remote(dane_host, "tls: dane")
    assert (await deliver()).result == "delivered"
    assert [(one.verified, one.policy_type) for one in deliver.events()] == [("", "no-policy-found")]


async def test_records_in_doubt_keep_mail_waiting(remote, zones, dane_host):
    publish(zones, dane_host)
    zones[f"_{dane_host.port}._tcp.{NAME}"] = DnsTemporary
    deliver = remote(dane_host, "tls: dane")
    assert (await deliver()).result == "deferred"
    assert [one.result_type for one in deliver.events()] == ["dnssec-invalid"]
    assert dane_host.connections == 0


async def test_records_behind_an_alias_and_before_it(remote, zones, dane_host, chain):
    """RFC 7672 section 2.2.2: behind the alias first, then before it; an unsigned end leaves that."""
    good, bad = tlsa(chain.pem["leaf"], 3, 1, 1), tlsa(Chain().pem["leaf"], 3, 1, 1)
    port = dane_host.port
    zones[NAME] = {"CNAME": ["real.example."], "secure": True}
    zones["real.example"] = {"A": ["127.0.0.1"], "secure": True}
    cases = [
        ({f"_{port}._tcp.real.example": good, f"_{port}._tcp.{NAME}": bad}, True, "delivered"),
        ({f"_{port}._tcp.{NAME}": bad}, True, "deferred"),
        ({f"_{port}._tcp.{NAME}": bad}, False, "deferred"),
        ({f"_{port}._tcp.real.example": bad}, False, "delivered"),
    ]
    for records, secure, result in cases:
        zones["real.example"]["secure"] = secure
        for name in (f"_{port}._tcp.real.example", f"_{port}._tcp.{NAME}"):
            zones[name] = {"TLSA": [records[name]], "secure": True} if name in records else {}
        assert (await remote(dane_host, "tls: dane")()).result == result, records


@pytest.mark.parametrize(("secure", "result"), [(True, "deferred"), (False, "delivered")])
async def test_by_mx_the_mx_record_must_be_validated_too(
    remote, zones, dane_host, monkeypatch, secure, result
):
    publish(zones, dane_host, tlsa(Chain().pem["leaf"], 3, 1, 1))
    zones["x.example"] = {"MX": [f"10 {NAME}."], "secure": secure}
    deliver = remote(dane_host, "tls: dane", '""')
    monkeypatch.setattr(part_of("hosts"), "SMTP", dane_host.port)
    monkeypatch.setattr(part_of("hosts"), "_is_own", lambda _ip, _own: False)
    assert (await deliver()).result == result
    assert deliver.events()[0].domain == "x.example"


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("tls", ["may", "dane", "{x.example: mta-sts}"])
async def test_dane_without_a_resolver_that_validates_is_told(chain_of, monkeypatch, here, tls):
    chain = chain_of(f"remote: {{tls: {tls}}}\n", "remote")
    monkeypatch.setattr("gateway.testing.fakes.FakeDns.validates", here)
    with structlog.testing.capture_logs() as logs:
        await chain.ask_plugin("remote", Stages.startup)
    assert bool(logs) == (tls != "may" and not here)


# DSN (RFC 3461 section 5.2)


@pytest.mark.parametrize(
    ("ehlo", "protocol", "handed"),
    [
        ("250-x\r\n250 DSN", "", "passed"),
        ("250 x", "", "relayed"),
        ("250 x", "lmtp:", ""),
        ("250-x\r\n250 DSN", "lmtp:", "passed"),
    ],
)
async def test_who_tells_of_a_delivery(remote, ehlo, protocol, handed):
    async with ScriptedHost({"EHLO": ehlo, "LHLO": ehlo}) as host:
        outcome = await remote(None, "tls: may", f'"{protocol}127.0.0.1:{host.port}"')(params={"RET": "HDRS"})
    assert (outcome.result, outcome.handed) == ("delivered", handed)
    assert ("MAIL FROM:<s@me.example> RET=HDRS" in host.commands) == (handed == "passed")


# REQUIRETLS (RFC 8689)


@pytest.mark.parametrize(
    ("case", "result", "status"),
    [
        ("good", "delivered", "2.0.0"),
        ("no promise", "failed", "5.7.30"),
        ("plain", "deferred", "4.7.4"),
        ("unknown", "deferred", "4.7.5"),
    ],
)
async def test_requiretls_needs_a_host_beyond_doubt(remote, hosts, case, result, status):
    script, tls = hosts.get(case, hosts["good"])
    if case != "no promise" and script:
        script = script | {"EHLO": script["EHLO"].replace("250 ", "250-") + "\r\n250 REQUIRETLS"}
    async with ScriptedHost(script, tls=tls) as host:
        outcome = await remote(host, "tls: none")(params={"REQUIRETLS": ""})
    assert (outcome.result, outcome.status) == (result, status)


async def test_requiretls_by_an_mx_that_nobody_has_validated(remote, zones, hosts, monkeypatch):
    script, tls = hosts["good"]
    async with ScriptedHost(script, tls=tls) as host:
        zones["x.example"] = {"MX": [f"10 {NAME}."]}
        deliver = remote(host, "tls: may", '""')
        monkeypatch.setattr(part_of("hosts"), "SMTP", host.port)
        monkeypatch.setattr(part_of("hosts"), "_is_own", lambda _ip, _own: False)
        outcome = await deliver(params={"REQUIRETLS": ""})
    assert (outcome.result, outcome.status, host.connections) == ("failed", "5.7.10", 0)
