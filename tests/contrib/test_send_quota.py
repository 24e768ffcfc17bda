import pytest

from gateway import Stages
from gateway.testing import session, transaction

YAML = "send_quota: {recipients: 3, window: 1h, clients: [192.0.2.0/24], users: {big: 10}}"


@pytest.fixture
def sends(mailward_plugin, contrib):
    plugin = mailward_plugin(contrib("send_quota"), YAML)

    async def send(count, user="", ip="192.0.2.7"):
        to = [f"{number}@example.com" for number in range(count)]
        answer = await plugin.says(Stages.data, transaction(session=session(ip, user=user), to=to))
        return answer.reason if answer else None

    return send


async def test_a_user_has_so_many_recipients_from_everywhere(sends):
    assert await sends(2, "ann") is None
    assert await sends(2, "ann", "203.0.113.1") == "quota"
    assert await sends(1, "ann", "203.0.113.1") is None
    assert await sends(1, "ann") == "quota"
    assert await sends(3, "bob") is None


async def test_a_user_may_have_a_quota_of_their_own(sends):
    assert await sends(10, "big") is None
    assert await sends(1, "big") == "quota"


async def test_a_client_of_ours_has_one_and_a_stranger_none(sends):
    assert await sends(3) is None
    assert await sends(1) == "quota"
    assert await sends(3, ip="192.0.2.8") is None
    assert await sends(1000, ip="203.0.113.1") is None
    assert await sends(1000, ip="2001:db8::1") is None
    assert await sends(1000, ip="unix") is None


async def test_the_window_moves_on(sends, mailward_clock):
    assert await sends(3, "ann") is None
    mailward_clock.advance(2 * 3600)
    assert await sends(3, "ann") is None
