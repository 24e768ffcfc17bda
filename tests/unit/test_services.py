"""Clock, counters, and DNS: over the table of FakeDns, and over the wire to a small name server."""

import asyncio
import datetime as dt

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from gateway.counters import Counters
from gateway.errors import DnsError, DnsNotFound, DnsTemporary
from gateway.services import Clock, Dns, a_label, is_ip
from gateway.testing.fakes import FakeClock, FakeDns

ZONES = {
    "example.org": {
        "MX": ["10 mx.example.org.", "20 MX2.Example.org."],
        "A": ["192.0.2.1"],
        "TXT": ['"v=spf1 " "-all"'],
    },
    "mx.example.org": {"A": ["192.0.2.2"], "AAAA": ["2001:db8::2"]},
    "null.example": {"MX": ["0 ."]},
    "half.example": {"A": ["192.0.2.3"], "AAAA": DnsTemporary},
    "doubt.example": {"A": DnsTemporary},
    "slow.example": DnsTemporary,
    "xn--bcher-kva.example": {"A": ["192.0.2.4"]},
    "2.2.0.192.in-addr.arpa": {"PTR": ["liar.example.", "mx.example.org."]},
    "3.2.0.192.in-addr.arpa": {"PTR": ["liar.example."]},
    "4.2.0.192.in-addr.arpa": {"PTR": ["doubt.example.", "example.org."]},
    "5.2.0.192.in-addr.arpa": DnsTemporary,
    "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa": {"PTR": ["mx.example.org."]},
}


# Clock


def test_the_clock_tells_utc():
    before = dt.datetime.now(dt.UTC)
    now = Clock().now()
    assert before <= now <= dt.datetime.now(dt.UTC)
    assert now.utcoffset() == dt.timedelta(0)


def test_a_fake_clock_moves_only_when_told():
    clock = FakeClock(1000.0)
    clock.advance(5)
    assert (clock.time(), clock.monotonic(), clock.now().second) == (1005.0, 1005.0, 45)


# Counters


async def test_hits_are_forgotten_with_their_window():
    clock = FakeClock()
    counters = Counters(clock)
    assert [await counters.hit("a", 60) for _ in range(3)] == [1, 2, 3]
    assert await counters.hit("b", 60) == 1
    clock.advance(120)
    assert await counters.hit("a", 60) == 1


async def test_a_window_slides_so_that_its_edge_gives_nobody_twice_the_limit():
    clock = FakeClock()
    counters = Counters(clock)
    await counters.hit("a", 60, 100)
    clock.advance(61)
    assert await counters.hit("a", 60, 0) > 90
    clock.advance(30)
    assert 40 < await counters.hit("a", 60, 0) < 60


async def test_memory_is_bounded_and_the_oldest_counter_goes():
    counters = Counters(FakeClock(), keys=3)
    for key in "abca":
        await counters.hit(key, 60)
    await counters.hit("d", 60)
    assert [await counters.hit(key, 60, 0) for key in "acd"] == [2, 1, 1]
    assert await counters.hit("b", 60, 0) == 0


async def test_slots_are_taken_up_to_the_limit_and_given_back():
    counters = Counters(FakeClock())
    assert [await counters.take("a", 2) for _ in range(3)] == [True, True, False]
    await counters.give("a")
    assert await counters.take("a", 2)
    assert await counters.take("b", 1)
    await counters.give("never taken")
    assert [await counters.take("never taken", 1) for _ in range(2)] == [True, False]


# Names


@pytest.mark.parametrize(
    ("domain", "label"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("_dmarc.example", "_dmarc.example"),
    ],
)
def test_names_as_the_dns_has_them(domain, label):
    assert a_label(domain) == label


@pytest.mark.parametrize(
    "domain", ["a..b", ".a", "x" * 64 + ".example", "a." * 130 + "b", "xn--\u20ac.\ud800"]
)
async def test_what_cannot_be_a_name_is_not_found(domain):
    with pytest.raises(DnsNotFound):
        a_label(domain)
    with pytest.raises(DnsNotFound):
        await Dns().mx(domain)


def test_addresses_are_told_from_names():
    assert [is_ip(text) for text in ("192.0.2.1", "2001:db8::1", "192.0.2", "a.example", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


# Look-ups


async def test_look_ups():
    dns_ = FakeDns(ZONES)
    assert await dns_.mx("Example.org") == [(10, "mx.example.org"), (20, "mx2.example.org")]
    assert await dns_.mx("null.example") == [(0, "")]
    assert await dns_.addresses("mx.example.org") == ["192.0.2.2", "2001:db8::2"]
    assert await dns_.addresses("bücher.example") == ["192.0.2.4"]
    assert await dns_.addresses("192.0.2.9") == ["192.0.2.9"]
    assert await dns_.txt("example.org") == ["v=spf1 -all"]
    assert await dns_.pointer("2001:db8::2") == ["mx.example.org"]


@pytest.mark.parametrize(
    ("host", "error"),
    [("no.example", DnsNotFound), ("doubt.example", DnsTemporary), ("slow.example", DnsTemporary)],
)
async def test_no_address(host, error):
    with pytest.raises(error):
        await FakeDns(ZONES).addresses(host)


async def test_doubt_about_one_family_does_not_hide_the_other():
    assert await FakeDns(ZONES).addresses("half.example") == ["192.0.2.3"]


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("192.0.2.2", "mx.example.org"),
        ("2001:db8::2", "mx.example.org"),
        ("192.0.2.3", ""),
        ("192.0.2.99", ""),
    ],
)
async def test_a_name_counts_only_when_it_points_back(ip, name):
    assert await FakeDns(ZONES).confirmed_name(ip) == name


@pytest.mark.parametrize("ip", ["192.0.2.4", "192.0.2.5"])
async def test_doubt_about_a_name_is_told(ip):
    with pytest.raises(DnsTemporary):
        await FakeDns(ZONES).confirmed_name(ip)


# Over the wire


class NameServer(asyncio.DatagramProtocol):
    """Answers by the first label of the question."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        name = query.question[0].name
        match name.labels[0].decode():
            case "servfail" | "refused" | "nxdomain" as code:
                answer.set_rcode(dns.rcode.from_text(code))
            case "signed" if query.flags & dns.flags.AD:
                answer.flags |= dns.flags.AD
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", "5 a.example."))
            case "mx":
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", "5 a.example."))
            case "loop":
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "loop2.example."))
                answer.answer.append(dns.rrset.from_text("loop2.example.", 60, "IN", "CNAME", str(name)))
            case "alias":
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "mx2.example."))
                answer.answer.append(dns.rrset.from_text("mx2.example.", 60, "IN", "MX", "7 b.example."))
            case "wrongid":
                answer.id ^= 1
            case "truncated":
                answer.flags |= dns.flags.TC
            case "silent":
                return
            case "junk":
                self.transport.sendto(b"junk", peer)
                return
        self.transport.sendto(answer.to_wire(), peer)


@pytest.fixture
async def wire():
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    yield Dns(["127.0.0.1"], transport.get_extra_info("sockname")[1], lifetime=0.3)
    transport.close()


@pytest.mark.parametrize(
    ("name", "found"), [("mx.example", [(5, "a.example")]), ("alias.example", [(7, "b.example")])]
)
async def test_answers_over_the_wire(wire, name, found):
    assert await wire.mx(name) == found


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nxdomain.example", DnsNotFound),
        ("nodata.example", DnsNotFound),
        ("servfail.example", DnsTemporary),
        ("refused.example", DnsTemporary),
        ("silent.example", DnsTemporary),
        ("wrongid.example", DnsTemporary),
        ("junk.example", DnsTemporary),
        # There is no TCP to ask again by.
        ("truncated.example", DnsTemporary),
        ("loop.example", DnsTemporary),
    ],
)
async def test_faults_over_the_wire(wire, name, error):
    with pytest.raises(DnsError) as caught:
        await asyncio.wait_for(wire.mx(name), 5)
    assert type(caught.value) is error


@pytest.mark.parametrize(("name", "secure"), [("signed.example", True), ("mx.example", False)])
async def test_a_resolver_on_this_host_says_what_it_has_validated(wire, name, secure):
    assert await wire.exchangers(name) == ([(5, "a.example")], secure)
    # The same from the cache.
    assert (await wire.exchangers(name)).secure is secure


@pytest.mark.parametrize(
    ("server", "believed"), [("127.0.0.53", True), ("::1", True), ("192.0.2.53", False), ("10.0.0.1", False)]
)
async def test_a_resolver_elsewhere_is_not_believed(wire, monkeypatch, server, believed):
    assert Dns([server]).validates is believed
    real = wire._asked().resolve

    async def answered(*arguments, **more):
        answer = await real(*arguments, **more)
        answer.nameserver = server
        return answer

    monkeypatch.setattr(wire._asked(), "resolve", answered)
    assert (await wire.exchangers("signed.example")).secure is believed


async def test_an_alias_is_as_sure_as_both_its_ends():
    zones = {
        "a.example": {"CNAME": ["b.example."], "secure": True},
        "b.example": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"], "secure": True},
    }
    assert await FakeDns(zones).located("a.example") == (["192.0.2.1", "2001:db8::1"], True, "b.example")
    zones["b.example"]["secure"] = False
    assert (await FakeDns(zones).located("a.example")).secure is False
    assert (await FakeDns(zones).located("192.0.2.1")).secure is False
