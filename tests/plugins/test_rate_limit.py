"""rate_limit: who is counted, by what, and who is not."""

import pytest

from gateway import Accept, Defer, Recipient, Stages

PERMIT = """
from gateway import Accept, Plugin, hookimpl

class RelayControl(Plugin):
    @hookimpl
    def relay(self, transaction):
        return Accept() if transaction.session.client.ip.startswith("10.") else None
"""
OURS = """
from gateway import Accept, Plugin, hookimpl

class Rcpthosts(Plugin):
    @hookimpl
    def relay(self, transaction):
        return Accept()
"""


@pytest.fixture
def send(chain_of, transaction):
    """Give `send(yaml)`, which gives `await once(ip, sender, recipients, **session)`: how many were taken."""

    def make(yaml):
        chain = chain_of(yaml, "rate_limit", relay_control=PERMIT, rcpthosts=OURS)

        async def once(ip="203.0.113.9", sender="s@remote.example", many=1, **session):
            one, taken = transaction(ip, sender, **session), 0
            for number in range(many):
                recipient = Recipient.of(f"r{number}@example.org")
                assert isinstance((await chain.ask(Stages.relay, one, recipient)).value, Accept)
                said = (await chain.ask(Stages.rcpt, one, recipient)).value
                taken += said is None
                if said is not None:
                    assert (type(said), said.status, said.reason) == (Defer, "4.7.1", "rate_limit")
            return taken

        once.chain = chain
        return once

    return make


async def test_recipients_and_messages_of_a_client_are_counted_and_wear_off(send, clock):
    once = send("rate_limit: {client: {messages: 3/m, recipients: 5/m}}\n")
    assert [await once(many=4), await once(many=4)] == [4, 1]
    assert await once(ip="203.0.113.10") == 1
    clock.advance(121)
    assert [await once() for _ in range(4)] == [1, 1, 1, 0]
    (told,) = {(event.limit, event.allowed, event.plugin) for event in once.chain.emitted[-1:]}
    assert told == ("client.messages", 3, "rate_limit")


async def test_an_ipv6_host_is_its_64(send):
    once = send("rate_limit: {client: {recipients: 2/h}}\n")
    said = [await once(ip=ip) for ip in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1")]
    assert said == [1, 1, 0, 1]


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "10.0.0.1", ""])
async def test_loopback_and_relay_clients_are_not_counted(send, ip):
    once = send("rate_limit: {client: {recipients: 1/d}, domain: {messages: 1/d}}\n")
    assert await once(ip=ip, many=5) == 5
    assert await once(ip=ip, many=5) == 5


async def test_unless_a_setting_says_so(send):
    once = send("rate_limit: {client: {recipients: 1/d}, exempt: [192.0.2.0/24], relay_clients: true}\n")
    addresses = ("127.0.0.1", "::1", "10.0.0.1", "192.0.2.1")
    assert [await once(ip=ip, many=3) for ip in addresses] == [1, 1, 1, 3]


async def test_a_login_counts_wherever_it_comes_from(send):
    once = send("rate_limit: {client: {recipients: 1/d}, user: {recipients: 3/d}}\n")
    said = [
        await once(ip=f"203.0.113.{i}", user=user)
        for i, user in enumerate(["joe", "Joe", "joe", "joe", "ann"])
    ]
    assert said == [1, 1, 1, 0, 1]
    assert await once(ip="10.0.0.1", user="joe") == 0


async def test_a_senders_domain_counts_over_all_clients(send):
    once = send("rate_limit: {domain: {messages: 2/h}}\n")
    said = [await once(ip=f"203.0.113.{i}", sender=f"s{i}@Bulk.example", many=2) for i in range(3)]
    assert said == [2, 2, 1]
    assert await once(sender="s@other.example") == 1
    assert [await once(sender="") for _ in range(3)] == [1, 1, 1]
