"""remote: MTA-STS policies (RFC 8461) read, fetched over HTTPS, kept, and kept to."""

import asyncio
import importlib.util
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from gateway import (
    Address,
    Delivery,
    DnsTemporary,
    Entry,
    EntryRecipient,
    Message,
    Recipient,
    Route,
    Stages,
)
from gateway.testing.hosts import ScriptedHost

MESSAGE = Message.parse(b"Subject: t\n\nbody\n")
STARTTLS = {"EHLO": "250-host.example\r\n250 STARTTLS", "STARTTLS": "220 go"}
POLICY = "version: STSv1\r\nmode: enforce\r\nmx: mx.x.example\r\nmax_age: 86400\r\n"


def part_of(name):
    """Find a file of the plugin as it was loaded last."""
    return [module for key, module in sys.modules.items() if "remote" in key and key.endswith(f".{name}")][-1]


@pytest.fixture(scope="module")
def sts():
    """Give the pure part by itself: it needs no chain."""
    path = Path(__file__).parents[2] / "plugins" / "remote" / "sts_policy.py"
    spec = importlib.util.spec_from_file_location("alone_sts_policy", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# Records and policies, read


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=1"], "1"),
        (["v=spf1 -all", "v=STSv1; id=7; more=x"], "7"),
        (["v=STSv1; id=1", "v=STSv1; id=2"], ""),
        (["v=STSv1"], ""),
        (["v=STSv1; id=with-dash"], ""),
        (["v=STSv1; id=" + "x" * 33], ""),
        (["v=STSv2; id=1"], ""),
        (["V=STSv1; id=1"], ""),
        ([" v=STSv1; id=1"], ""),
        ([], ""),
    ],
)
def test_the_record(sts, texts, found):
    assert sts.parse_record(texts) == found


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (POLICY, ("enforce", ("mx.x.example",), 86400)),
        (POLICY.replace("\r\n", "\n"), ("enforce", ("mx.x.example",), 86400)),
        (
            "version:STSv1\nmode:testing\nmx: A.example.\nmx: *.b.example\nmax_age:1\nnew: key\n",
            ("testing", ("a.example", "*.b.example"), 1),
        ),
        ("version: STSv1\nmode: none\nmax_age: 99999999999\n", None),
        ("version: STSv1\nmode: none\nmax_age: 99999999\n", ("none", (), 31_557_600)),
        (
            "version: STSv1\nmode: enforce\nmode: none\nmx: a.example\nmax_age: 5\n",
            ("enforce", ("a.example",), 5),
        ),
        (POLICY.replace("STSv1", "STSv2"), None),
        (POLICY.replace("enforce", "off"), None),
        (POLICY.replace("86400", "-1"), None),
        (POLICY.replace("mx: mx.x.example", ""), None),
        (POLICY.replace("mx.x.example", "*.*.example"), None),
        (POLICY.replace("mx.x.example", "a b"), None),
        (POLICY.replace("mx: mx.x.example\r\n", "mx: a.example\r\n" * 1001), None),
        ("", None),
        ("<html>", None),
    ],
)
def test_the_policy(sts, text, policy):
    if policy is None:
        with pytest.raises(ValueError, match=r"."):
            sts.parse_policy(text)
    else:
        assert sts.parse_policy(text) == sts.StsPolicy(*policy)


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("mx.x.example", "mx.x.example", True),
        ("mx.x.example", "MX.X.EXAMPLE.", True),
        ("mx.x.example", "a.mx.x.example", False),
        ("*.x.example", "mx.x.example", True),
        ("*.x.example", "a.mx.x.example", False),
        ("*.x.example", "x.example", False),
    ],
)
def test_which_hosts_it_allows(sts, pattern, host, allowed):
    assert sts.StsPolicy("enforce", (pattern,), 1).allows(host) is allowed


# Fetched and kept


class PolicyHost:
    """Serves a policy over HTTPS as it is told."""

    def __init__(self, context):
        self._context = context
        self.answer = http(POLICY)
        self.asked = []
        self.port = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answer)
        writer.close()


def http(body, status="200 OK", kind="text/plain", more=""):
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n{body}".encode()


def chunked(body):
    return http(f"{len(body):x}\r\n{body}\r\n0\r\n\r\n", more="Transfer-Encoding: chunked\r\n")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def context_of(leaf):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


@pytest.fixture
async def policy_host(authority):
    async with PolicyHost(context_of(authority.issue_cert("mta-sts.x.example"))) as host:
        yield host


@pytest.fixture
async def remote(chain_of, zones, authority, tmp_path, monkeypatch):
    """Give `remote(host, policy_host)`: a function that delivers to x.example, whose MX is at `host`."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    zones["mx.x.example"] = zones["mta-sts.x.example"] = {"A": ["127.0.0.1"]}
    zones["x.example"] = {"MX": ["10 mx.x.example."]}
    zones["_mta-sts.x.example"] = {"TXT": ['"v=STSv1; id=1;"']}
    chains = []

    def build(host, policy_host, tls="mta-sts", route='""'):
        chain = chain_of(
            f"remote: {{ca_file: ca.pem, tls: {tls}, routes: {{x.example: {route}}}}}\n", "remote"
        )
        chains.append(chain)
        if host:
            monkeypatch.setattr(part_of("hosts"), "SMTP", host.port)
        monkeypatch.setattr(part_of("hosts"), "_is_own", lambda _ip, _own: False)
        monkeypatch.setattr(part_of("https"), "HTTPS", policy_host.port)

        async def deliver(params=None, message=MESSAGE):
            rows = [EntryRecipient(0, Recipient.of("u@x.example"))]
            entry = Entry("entry-1", Address("s@me.example"), message, rows, 0.0, params=params or {})
            delivery = Delivery("d-1", entry, Route("remote", "remote"), tuple(rows), entry.sender)
            answer = await chain.ask_plugin("remote", Stages.deliver, delivery)
            assert not answer.failed, chain.emitted
            await chain.ask_plugin("remote", Stages.shutdown)
            return answer.value[0]

        deliver.chain = chain
        deliver.told = lambda: [
            (event.NAME, getattr(event, "result_type", event.NAME == "tls.established" and event.verified))
            for event in chain.emitted
            if event.NAME.startswith("tls.")
        ]
        return deliver

    yield build
    for chain in chains:
        await chain.ask_plugin("remote", Stages.shutdown)


@pytest.fixture
async def good(authority):
    async with ScriptedHost(STARTTLS, tls=context_of(authority.issue_cert("mx.x.example"))) as host:
        yield host


@pytest.fixture
async def bad():
    async with ScriptedHost(STARTTLS, tls=context_of(trustme.CA().issue_cert("mx.x.example"))) as host:
        yield host


@pytest.mark.parametrize(
    "answer", [http(POLICY), chunked(POLICY), http(POLICY, kind="text/plain; charset=utf-8")]
)
async def test_a_host_of_the_policy_with_a_certificate_that_is_known(remote, good, policy_host, answer):
    policy_host.answer = answer
    deliver = remote(good, policy_host)
    assert (await deliver()).result == "delivered"
    assert deliver.told() == [("tls.established", "webpki")]
    assert policy_host.asked[0].startswith(
        "GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.x.example\r\n"
    )


async def test_enforce_lets_nothing_through_to_another(remote, bad, policy_host):
    deliver = remote(bad, policy_host)
    outcome = await deliver()
    assert (outcome.result, outcome.status) == ("deferred", "4.7.5")
    assert deliver.told() == [("tls.failed", "certificate-not-trusted")]
    (event,) = [one for one in deliver.chain.emitted if one.NAME == "tls.failed"]
    assert (event.policy, event.policy_type, event.domain) == ("mta-sts", "sts", "x.example")
    assert bad.contents == []


async def test_enforce_lets_nothing_through_in_plain(remote, policy_host):
    async with ScriptedHost() as host:
        deliver = remote(host, policy_host)
        assert (await deliver()).result == "deferred"
    assert deliver.told() == [("tls.failed", "starttls-not-supported")]


async def test_a_host_that_the_policy_does_not_name(remote, good, policy_host):
    policy_host.answer = http(POLICY.replace("mx.x", "other.x"))
    deliver = remote(good, policy_host)
    outcome = await deliver()
    assert (outcome.result, good.connections) == ("deferred", 0)
    assert "policy" in outcome.text
    assert deliver.told() == [("tls.failed", "validation-failure")]


@pytest.mark.parametrize(
    ("header", "params", "result"),
    [
        ("TLS-Required: No\n", {}, "delivered"),
        ("tls-required:no\n", {}, "delivered"),
        ("TLS-Required: Yes\n", {}, "deferred"),
        ("TLS-Required: No\nTLS-Required: No\n", {}, "deferred"),
        ("X: TLS-Required: No\n", {}, "deferred"),
        ("TLS-Required: No\n", {"REQUIRETLS": ""}, "deferred"),
    ],
)
async def test_a_sender_may_let_a_domains_policy_be(remote, bad, policy_host, header, params, result):
    """RFC 8689 section 5; where TLS is offered it is used all the same."""
    deliver = remote(bad, policy_host)
    outcome = await deliver(params, Message.parse(f"{header}\nbody\n".encode()))
    assert outcome.result == result
    if result == "delivered":
        assert (deliver.told(), policy_host.asked) == ([("tls.established", "")], [])


@pytest.mark.parametrize("tls", ["encrypt", "verify"])
async def test_no_sender_overrules_our_own_policy(remote, policy_host, tls):
    async with ScriptedHost() as host:
        outcome = await remote(host, policy_host, tls)(message=Message.parse(b"TLS-Required: No\n\nx\n"))
    assert (outcome.result, host.contents) == ("deferred", [])


@pytest.mark.parametrize("mx", ["mx.x.example", "other.x.example"])
async def test_testing_tells_and_delivers(remote, bad, good, policy_host, mx):
    policy_host.answer = http(POLICY.replace("enforce", "testing").replace("mx.x.example", mx))
    for host, kind in ((bad, "certificate-not-trusted"), (good, "validation-failure")):
        deliver = remote(host, policy_host)
        assert (await deliver()).result == "delivered"
        passed = mx == "mx.x.example" and host is good
        failed = [] if passed else [("tls.failed", kind)]
        assert deliver.told() == [*failed, ("tls.established", "webpki" if passed else "")]


async def test_none_asks_for_nothing(remote, bad, policy_host):
    policy_host.answer = http("version: STSv1\nmode: none\nmax_age: 86400\n")
    deliver = remote(bad, policy_host)
    assert (await deliver()).result == "delivered"
    assert deliver.told() == [("tls.established", "")]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(POLICY, "404 Not Found"), "sts-policy-fetch-error"),
        (
            http("", "301 Moved", more="Location: https://mta-sts.x.example/other\r\n"),
            "sts-policy-fetch-error",
        ),
        (http(POLICY, kind="text/html"), "sts-policy-fetch-error"),
        (http(POLICY + "x" * 200_000), "sts-policy-fetch-error"),
        (b"", "sts-policy-fetch-error"),
        (b"garbage\r\n\r\n", "sts-policy-fetch-error"),
        (chunked(POLICY)[:-20], "sts-policy-fetch-error"),
        (http("what"), "sts-policy-invalid"),
        (http("").replace(b"\r\n\r\n", b"\r\n\r\n\xff"), "sts-policy-invalid"),
    ],
)
async def test_a_policy_that_cannot_be_had_is_told_and_asks_for_nothing(
    remote, bad, policy_host, answer, kind
):
    policy_host.answer = answer
    deliver = remote(bad, policy_host)
    assert (await deliver()).result == "delivered"
    assert deliver.told() == [("tls.failed", kind), ("tls.established", "")]


async def test_a_policy_of_a_host_that_is_not_known_is_not_read(remote, bad):
    async with PolicyHost(context_of(trustme.CA().issue_cert("mta-sts.x.example"))) as policy_host:
        deliver = remote(bad, policy_host)
        assert (await deliver()).result == "delivered"
    assert deliver.told()[0] == ("tls.failed", "sts-webpki-invalid")
    assert policy_host.asked == []


async def test_after_a_fetch_in_vain_there_is_a_pause(remote, bad, policy_host, clock):
    policy_host.answer = http("", "500 No")
    deliver = remote(bad, policy_host)
    for seconds, asked in ((0, 1), (200, 1), (200, 2)):
        clock.advance(seconds)
        await deliver()
        assert len(policy_host.asked) == asked


async def test_a_policy_is_kept_over_restarts_for_its_time(remote, bad, policy_host, zones, clock):
    for _ in range(2):
        assert (await remote(bad, policy_host)()).result == "deferred"
    assert len(policy_host.asked) == 1
    # Who hides the record, or the policy, does not undo it.
    for hidden in ({}, DnsTemporary):
        zones["_mta-sts.x.example"] = hidden
        assert (await remote(bad, policy_host)()).result == "deferred"
    zones["_mta-sts.x.example"] = {"TXT": ['"v=STSv1; id=2;"']}
    policy_host.answer = http("", "500 No")
    assert (await remote(bad, policy_host)()).result == "deferred"
    clock.advance(86401)
    assert (await remote(bad, policy_host)()).result == "delivered"


async def test_another_id_brings_another_policy(remote, bad, policy_host, zones):
    assert (await remote(bad, policy_host)()).result == "deferred"
    zones["_mta-sts.x.example"] = {"TXT": ['"v=STSv1; id=2;"']}
    policy_host.answer = http(POLICY.replace("enforce", "testing"))
    assert (await remote(bad, policy_host)()).result == "delivered"
    assert len(policy_host.asked) == 2


async def test_many_at_once_fetch_once(remote, good, policy_host):
    deliver = remote(good, policy_host)
    assert {outcome.result for outcome in await asyncio.gather(*[deliver() for _ in range(5)])} == {
        "delivered"
    }
    assert len(policy_host.asked) == 1


@pytest.mark.parametrize("damage", ["", '{"id": 1}', "\xff"])
async def test_a_damaged_file_is_fetched_anew(remote, good, policy_host, tmp_path, damage):
    await remote(good, policy_host)()
    (tmp_path / "remote" / "mta-sts" / "x.example").write_text(damage, "latin-1")
    assert (await remote(good, policy_host)()).result == "delivered"
    assert len(policy_host.asked) == 2


async def test_room_is_made(remote, good, policy_host, tmp_path, monkeypatch):
    folder = tmp_path / "remote" / "mta-sts"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"d{number}.example").write_text("{}")
    deliver = remote(good, policy_host)
    monkeypatch.setattr(part_of("mta_sts"), "KEPT", 20)
    await deliver()
    assert len(list(folder.iterdir())) == 19
    assert (folder / "x.example").exists()


async def test_policies_are_asked_for_by_mta_sts_alone(remote, bad, policy_host):
    for tls in ("may", "encrypt", "dane"):
        assert (await remote(bad, policy_host, tls)()).result == "delivered"
    route = f'"mx.x.example:{bad.port}"'
    assert (await remote(None, policy_host, route=route)()).result == "delivered"
    assert policy_host.asked == []


# DANE comes first (RFC 8461 section 2)


@pytest.mark.parametrize("mode", ["enforce", "testing", "none"])
async def test_mta_sts_never_overrides_dane(remote, good, policy_host, zones, mode):
    """The policy would let it pass; the TLSA record does not."""
    policy_host.answer = http(POLICY.replace("enforce", mode))
    zones["x.example"]["secure"] = zones["mx.x.example"]["secure"] = True
    zones[f"_{good.port}._tcp.mx.x.example"] = {"TLSA": ["3 1 1 " + "00" * 32], "secure": True}
    deliver = remote(good, policy_host)
    assert (await deliver()).result == "deferred"
    assert good.contents == []
    assert deliver.told() == [("tls.failed", "validation-failure")]


async def test_nor_where_dane_is_in_doubt(remote, good, policy_host, zones):
    zones["x.example"]["secure"] = zones["mx.x.example"]["secure"] = True
    zones[f"_{good.port}._tcp.mx.x.example"] = DnsTemporary
    deliver = remote(good, policy_host)
    assert ((await deliver()).result, deliver.told()) == ("deferred", [("tls.failed", "dnssec-invalid")])


async def test_requiretls_is_content_with_a_policy(remote, authority, policy_host):
    script = {"EHLO": "250-x\r\n250-STARTTLS\r\n250 REQUIRETLS", "STARTTLS": "220 go"}
    policy_host.answer = http(POLICY.replace("enforce", "testing"))
    async with ScriptedHost(script, tls=context_of(authority.issue_cert("mx.x.example"))) as host:
        assert (await remote(host, policy_host, "may")({"REQUIRETLS": ""})).result == "delivered"
    assert "MAIL FROM:<s@me.example> REQUIRETLS" in host.commands


@pytest.mark.parametrize(("mode", "way"), [("enforce", "webpki"), ("testing", "")])
async def test_records_that_cannot_be_matched_leave_who_it_is_to_the_policy(
    remote, good, policy_host, zones, mode, way
):
    policy_host.answer = http(POLICY.replace("enforce", mode))
    zones["x.example"]["secure"] = zones["mx.x.example"]["secure"] = True
    zones[f"_{good.port}._tcp.mx.x.example"] = {"TLSA": ["0 0 1 " + "00" * 32], "secure": True}
    deliver = remote(good, policy_host)
    assert ((await deliver()).result, deliver.told()) == ("delivered", [("tls.established", way)])
