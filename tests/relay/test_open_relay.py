"""The relay table: by the real server and chain no stranger can send elsewhere, and all can write to us.

Each probe is one RCPT of a stranger. The table is played with the gateway as it comes, and with each plugin
of the stage `relay` disabled, raising, silent, slow or gone wild.
"""

import asyncio
import socket
import ssl

import pytest
import trustme

from gateway.counters import Counters
from gateway.errors import ConfigError
from gateway.plugin import Services
from gateway.queue import MemoryQueue
from gateway.reception import Reception
from gateway.settings import Settings
from gateway.settings.tree import Tree
from gateway.smtp import Server
from gateway.smtp.tls import Certificates
from gateway.testing import Bench
from gateway.testing.fakes import FakeClock, FakeDns

OURS = "example.org"
THEM = "victim.example"
LISTENER = 'listeners: [{name: mx, protocol: smtp, address: "127.0.0.1:25"}]\n'
CONF = f"""\
gateway: {{hostname: mail.example.org}}
{LISTENER}\
limits: {{bad_commands: 1000}}
rcpthosts: {{deadline: 0.01s, domains: [example.org, .sub.example.org]}}
virtual_domains: {{domains: {{example.org: abc, .sub.example.org: abc}}}}
recipient_check: {{enabled: false}}
"""
#: Knows the people of our own domains and nobody else, as accounts would.
PEOPLE = """
from gateway import Plugin, Reject, hookimpl

class People(Plugin):
    @hookimpl
    def rcpt(self, recipient):
        local, domain = recipient.address.local_part, recipient.address.domain
        ours = domain in ("", "example.org") or domain.endswith(".sub.example.org")
        if ours and not local.replace("-", "").replace("+", "").replace(".", "").isalnum():
            return Reject("5.1.1", "no such user here", reason="unknown_recipient")
"""

#: The sixteen forms of nmap's smtp-open-relay, then those of other scanners and of old incidents.
PROBES = [
    f"<u@{THEM}>",
    f"<u%{THEM}@{OURS}>",
    f"<u%{THEM}@[127.0.0.1]>",
    f'<"u@{THEM}">',
    f'<"u%{THEM}">',
    f"<u@{THEM}@[127.0.0.1]>",
    f'<"u@{THEM}"@[127.0.0.1]>',
    f"<u@{THEM}@{OURS}>",
    f"<@[127.0.0.1]:u@{THEM}>",
    f"<@{OURS}:u@{THEM}>",
    f"<{THEM}!u>",
    f"<{THEM}!u@[127.0.0.1]>",
    f"<{THEM}!u@{OURS}>",
    f"<u%{THEM}>",
    f'<"u@{THEM}"@{OURS}>',
    f"<u@[{THEM}]>",
    f"u@{THEM}",
    f" <u@{THEM}>",
    f"<u@{THEM.upper()}>",
    f"<u@{THEM}.>",
    f"<u@.{THEM}>",
    f"<u@sub.{THEM}>",
    f"<u@{THEM}.{OURS}>",
    f"<u@x{OURS}>",
    f"<u@{OURS}.{THEM}>",
    f"<u@{OURS}@{THEM}>",
    f"<u@@{THEM}>",
    f"<u@{OURS}>@{THEM}",
    f"<u@{OURS}%00@{THEM}>",
    f"<u\\@{OURS}@{THEM}>",
    f"<u@{THEM}\\@{OURS}>",
    f"<u@{THEM}\0@{OURS}>",
    f"<u@{OURS}\0.{THEM}>",
    f"<u@{THEM} @{OURS}>",
    f"<u@{THEM}\t@{OURS}>",
    f"<u@{OURS} {THEM}>",
    f"<u@{OURS},v@{THEM}>",
    f"<u@{THEM},v@{OURS}>",
    f"<u@{THEM};v@{OURS}>",
    f"<u@(c){THEM}>",
    f"<u(c)@{THEM}>",
    f"<u@{THEM}(@{OURS})>",
    f"<{THEM}::u@{OURS}>",
    f"<@{OURS},@{OURS}:u@{THEM}>",
    f"<@{OURS}:@{OURS}:u@{THEM}>",
    f"<@{OURS}:u%{THEM}@{THEM}>",
    f"<a!b!{THEM}!u@{OURS}>",
    f"<u%{THEM}%{OURS}@{OURS}>",
    "<u@[127.0.0.1]>",
    "<u@[192.0.2.1]>",
    "<u@[IPv6:::1]>",
    "<u@127.0.0.1>",
    "<u@2130706433>",
    "<u@localhost>",
    "<u@>",
    "<>",
    "<@>",
    "<u@ex\u0430mple.org> ",
    "<u@\uff45xample.org>",
    "<u@xn--exmple-4nf.org>",
    "<u@example.or\u0261>",
    f"<=?utf-8?q?u=40{THEM}?=@{THEM}>",
    f"<{'a' * 200}@{THEM}>",
    f"<u@{'a.' * 100}{THEM}>",
    f'<"u"@{THEM}> NOTIFY=NEVER',
    f"<u@sub.{OURS}>",
    f"<u@sub.{OURS}.>",
]
#: Those that name another domain plainly, and none of ours.
ELSEWHERE = [one for one in PROBES if f"@{THEM}>" in one and OURS not in one]
#: Who may be a stranger's sender: none of it gives a right.
SENDERS = ["<s@stranger.example>", "<>", f"<admin@{OURS}>", "<root@localhost>", "<admin@[127.0.0.1]>"]

LEGITIMATE = [
    f"<{local}@{domain}>"
    for local in ("info", "Joe", "joe-list", "joe+tag", "a.b", "x1", "POSTMASTER", "u-v-w")
    for domain in (OURS, OURS.upper(), "Example.Org", f"a.sub.{OURS}", f"a.b.sub.{OURS}", f"A.Sub.{OURS}")
] + [
    form.format(local)
    for local in ("info", "joe", "ann", "postmaster")
    for form in (f"{{}}@{OURS}", f" <{{}}@{OURS}>", f'<"{{}}"@{OURS}>', f"<@relay.example:{{}}@{OURS}>")
]

SILENT = """
from gateway import Plugin, hookimpl
class P(Plugin):
    @hookimpl
    def relay(self): return None
"""
ANYBODY = SILENT.replace("relay", "rcpt")
RAISING = SILENT.replace("return None", "raise RuntimeError")
WILD = SILENT.replace("return None", "return True")
SLOW = SILENT.replace(
    "    def relay(self): return None",
    "    async def relay(self):\n        import asyncio; await asyncio.sleep(60)",
)


@pytest.fixture
async def gateway(tmp_path):
    """Give `gateway(yaml, zones, **plugins)`: a server on a port of its own, from which strangers connect.

    With `made=Server` clients come from where they are: from loopback.
    """
    started = []

    async def start(yaml="", zones=None, conf=CONF, made=Stranger, **plugins):
        clock = FakeClock()
        bench = Bench(tmp_path, Services(clock, FakeDns(zones), Counters(clock)))
        tree = Tree.parse({"conf.d/site.yaml": conf + yaml}, base=tmp_path)
        settings = Settings.of(tree)
        bench.write({"people": PEOPLE, **plugins})
        chain = bench.build(conf + yaml).chain
        queue = MemoryQueue()
        await queue.open()
        reception = Reception(lambda: chain, queue, bench.services, lambda: settings.limits, lambda: None)
        server = made(
            reception,
            settings.limits,
            "mail.example.org",
            settings.listeners[0],
            asyncio.get_running_loop(),
            None,
            Certificates(settings.tls),
        )
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        port = sock.getsockname()[1]
        started.append((await server.listen(sock), server, queue))
        return port, bench

    yield start
    for listening, server, queue in started:
        listening.close()
        await server.close_gently()
        await queue.close()


class Stranger(Server):
    """The real server; to it every client comes from the address that the test says."""

    ip = "203.0.113.9"

    def __init__(self, reception, *args):
        opened = reception.open

        def open_(listener, protocol, client, local_ip):
            client.ip = self.ip
            return opened(listener, protocol, client, local_ip)

        reception.open = open_
        super().__init__(reception, *args)


async def replies(port, recipients, sender="<s@stranger.example>", hello="EHLO", before="", tls=None):
    """Give the reply code of each RCPT, all sent in one go, after what is said before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(before.encode())
    utf8 = " SMTPUTF8" if any(not one.isascii() for one in recipients) else ""
    lines = [f"{hello} mail.example.org", f"MAIL FROM:{sender}{utf8}"]
    writer.write(
        "".join(
            f"{line}\r\n" for line in [*lines, *(f"RCPT TO:{one}" for one in recipients), "QUIT"]
        ).encode()
    )
    said = [line.decode() async for line in reader]
    writer.close()
    final = [line for line in said if line[3] == " "]
    mail, *ours, bye = final[-len(recipients) - 2 :]
    assert (mail[:3], bye[:3]) == ("250", "221"), said
    return {one: line.strip() for one, line in zip(recipients, ours, strict=True)}


async def refuses_all(port, probes=PROBES, senders=SENDERS, **how):
    for sender in senders:
        answers = await replies(port, probes, sender, **how)
        accepted = {one: said for one, said in answers.items() if said[0] not in "45"}
        assert not accepted, sender


async def test_out_of_the_box_no_probe_gets_through(gateway):
    assert len(PROBES) >= 64
    port, bench = await gateway()
    await refuses_all(port)
    events = bench.told("recipient.refused")
    assert any(event.reason == "relay" and event.client_ip == "203.0.113.9" for event in events)


@pytest.mark.parametrize(
    ("keys", "hello"),
    [
        ("protocol: lmtp", "LHLO"),
        ("protocol: submission, tls: none, auth: none", "EHLO"),
        ("protocol: submission, tls: none, auth: optional", "EHLO"),
        ("protocol: smtp, xclient: [192.0.2.0/24], proxy: [192.0.2.0/24]", "EHLO"),
    ],
)
async def test_no_kind_of_listener_lets_a_probe_through(gateway, keys, hello):
    listener = f'listeners: [{{name: mx, {keys}, address: "127.0.0.1:25"}}]\n'
    port, _ = await gateway(conf=CONF.replace(LISTENER, listener))
    await refuses_all(port, hello=hello)
    said = await replies(port, LEGITIMATE, hello=hello)
    assert {one: text for one, text in said.items() if text[0] != "2"} == {}


PROXIED = "PROXY TCP4 203.0.113.9 192.0.2.1 4000 25\r\n"
BY_PROXY = "proxy: [127.0.0.0/8]"
BY_XCLIENT = "xclient: [127.0.0.0/8]"


@pytest.mark.parametrize("clients", ["127.0.0.0/8", ".trusted.example"])
@pytest.mark.parametrize(
    ("keys", "before", "own"),
    [
        (BY_PROXY, PROXIED, "PROXY UNKNOWN\r\n"),
        (f"{BY_PROXY}, {BY_XCLIENT}", f"{PROXIED}EHLO x\r\nXCLIENT ADDR=127.0.0.1\r\n", "PROXY UNKNOWN\r\n"),
        (BY_XCLIENT, "EHLO x\r\nXCLIENT ADDR=203.0.113.9\r\n", ""),
        (BY_XCLIENT, "EHLO x\r\nXCLIENT ADDR=203.0.113.9 NAME=stranger.example\r\n", ""),
        (BY_XCLIENT, "EHLO x\r\nXCLIENT ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]\r\n", ""),
        (
            BY_XCLIENT,
            f"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<u@{THEM}>\r\nRSET\r\nXCLIENT ADDR=203.0.113.9\r\n",
            "",
        ),
    ],
    ids=["proxy", "xclient behind proxy", "xclient", "xclient with a name", "unknown", "second client"],
)
async def test_for_whom_a_relay_client_speaks_has_none_of_its_rights(gateway, clients, keys, before, own):
    zones = {
        "1.0.0.127.in-addr.arpa": {"PTR": ["proxy.trusted.example."]},
        "proxy.trusted.example": {"A": ["127.0.0.1"]},
    }
    listener = f'listeners: [{{name: mx, protocol: smtp, {keys}, address: "127.0.0.1:25"}}]\n'
    yaml = f"relay_control: {{clients: [{clients}]}}\n"
    port, _ = await gateway(yaml, zones, CONF.replace(LISTENER, listener), Server, people=ANYBODY)
    elsewhere = f"<u@{THEM}>"
    assert (await replies(port, [elsewhere], before=own))[elsewhere].startswith("250")
    await refuses_all(port, ELSEWHERE, SENDERS[:2], before=before)


async def test_tls_from_the_first_byte_lets_no_probe_through(gateway, tmp_path):
    trustme.CA().issue_cert("mail.example.org").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "mx.pem"
    )
    listener = 'listeners: [{name: mx, protocol: smtp, tls: implicit, address: "127.0.0.1:25"}]\n'
    tls = f"tls: {{certificates: [{{certificate: {tmp_path}/mx.pem, key: {tmp_path}/mx.pem}}]}}\n"
    port, _ = await gateway(conf=CONF.replace(LISTENER, listener + tls))
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    await refuses_all(port, tls=anybody)


async def test_submission_takes_nothing_from_who_has_not_logged_in(gateway):
    listener = 'listeners: [{name: mx, protocol: submission, tls: none, address: "127.0.0.1:25"}]\n'
    port, _ = await gateway(conf=CONF.replace(LISTENER, listener))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"EHLO x\r\nMAIL FROM:<joe@example.org>\r\nRCPT TO:<joe@example.org>\r\nQUIT\r\n")
    said = [line[:9] async for line in reader]
    writer.close()
    assert said[-3:-1] == [b"530 5.7.0", b"503 5.5.1"]


async def test_legitimate_mail_is_never_refused(gateway):
    assert len(LEGITIMATE) >= 64
    port, _ = await gateway()
    refused = {one: said for one, said in (await replies(port, LEGITIMATE)).items() if said[0] != "2"}
    assert not refused


@pytest.mark.parametrize("stem", ["relay_control", "rcpthosts"])
@pytest.mark.parametrize("fault", [SILENT, RAISING, WILD, SLOW], ids=["silent", "raising", "wild", "slow"])
async def test_a_replaced_plugin_opens_nothing(gateway, stem, fault):
    port, _ = await gateway("relay_control: {deadline: 0.01s}\n", **{stem: _with_settings(fault)})
    await refuses_all(port, PROBES if fault is not SLOW else PROBES[:5], SENDERS[:1])


@pytest.mark.parametrize("fault", [SILENT, RAISING], ids=["silent", "raising"])
@pytest.mark.parametrize(
    ("stem", "stage"),
    [
        ("badmailfrom", "rcpt"),
        ("recipient_check", "rcpt"),
        ("received", "message"),
        ("percenthack", "rewrite"),
        ("virtual_domains", "rewrite"),
        ("locals", "route"),
        ("accounts", "account"),
        ("dot_qmail", "exists"),
        ("remote", "route"),
        ("quadratic_retry", "retry"),
        ("bounces", "bounce"),
        ("submission", "rcpt"),
    ],
)
async def test_no_other_plugin_opens_anything_when_it_fails(gateway, stem, stage, fault):
    conf = CONF.replace("recipient_check: {enabled: false}\n", "")
    source = _with_settings(fault).replace("def relay", f"def {stage}")
    port, _ = await gateway(conf=conf, **{stem: source})
    await refuses_all(port, senders=SENDERS[:1])


def _with_settings(source):
    """Let a replacement take the settings of what it replaces."""
    settings = """
from typing import Any
from gateway import Section
class Settings(Section):
    domains: Any = None
"""
    return settings + source.replace("(Plugin)", "(Plugin[Settings])")


@pytest.mark.parametrize(
    "stem",
    [
        "relay_control",
        "badmailfrom",
        "recipient_check",
        "received",
        "percenthack",
        "virtual_domains",
        "locals",
        "accounts",
        "dot_qmail",
        "remote",
        "submission",
    ],
)
async def test_a_disabled_plugin_opens_nothing(gateway, stem):
    conf = CONF.replace("recipient_check: {enabled: false}\n", "")
    if stem == "virtual_domains":
        conf = conf.replace("virtual_domains: {", "virtual_domains: {enabled: false, ")
    else:
        conf += f"{stem}: {{enabled: false}}\n"
    port, _ = await gateway(conf=conf)
    await refuses_all(port)


async def test_without_rcpthosts_nothing_is_accepted_at_all(gateway):
    port, _ = await gateway(conf=CONF.replace("rcpthosts: {", "rcpthosts: {enabled: false, "))
    await refuses_all(port)
    await refuses_all(port, LEGITIMATE, SENDERS[:1])


@pytest.mark.parametrize("key", ["dry_run: true", "on_error: skip"])
async def test_a_relay_plugin_can_be_neither_dry_nor_skipped(gateway, key):
    with pytest.raises(ConfigError, match="relay takes no"):
        await gateway(f"relay_control: {{{key}}}\n")


async def test_no_allowlist_in_rcpt_opens_the_relay(gateway):
    source = SILENT.replace("relay", "rcpt").replace("None", "Accept()").replace("Plugin,", "Accept, Plugin,")
    port, _ = await gateway("allow_all: {before: [people]}\n", allow_all=source)
    assert len(ELSEWHERE) > 5
    await refuses_all(port, ELSEWHERE)


HOSTS = "relay_control: {clients: [trusted.example, .trusted.example]}\n"


@pytest.mark.parametrize("back", [[], ["192.0.2.1"]])
async def test_a_forged_name_gives_nothing(gateway, back):
    zones = {"9.113.0.203.in-addr.arpa": {"PTR": ["trusted.example.", "a.trusted.example."]}}
    zones |= {"trusted.example": {"A": back}, "a.trusted.example": {"A": back}}
    port, _ = await gateway(HOSTS, zones)
    await refuses_all(port, senders=SENDERS[:1])


async def test_the_selected_host_and_network_may_relay(gateway):
    """The other side: the probes above are refused because of who asks, not because the server is deaf."""
    zones = {
        "9.113.0.203.in-addr.arpa": {"PTR": ["trusted.example."]},
        "trusted.example": {"A": ["203.0.113.9"]},
    }
    for yaml in (HOSTS, "relay_control: {clients: [203.0.113.0/24]}\n"):
        port, _ = await gateway(yaml, zones, people=ANYBODY)
        assert (await replies(port, [f"<u@{THEM}>"]))[f"<u@{THEM}>"].startswith("250")
