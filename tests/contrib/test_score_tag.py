import pytest

from gateway import Hold, Stages
from gateway.testing import message, transaction


@pytest.fixture
def plugin(mailward_plugin, contrib):
    return mailward_plugin(contrib("score_tag"), 'score_tag: {subject: "[SPAM]"}')


@pytest.mark.parametrize(
    ("field", "value", "tagged", "held"),
    [
        ("X-Spamd-Result", "default: False [1.20 / 15.00];\n\tDATE_IN_PAST(1.00)[]", False, False),
        ("X-Spamd-Result", "default: True [7.30 / 15.00];\n\tDATE_IN_PAST(1.00)[]", True, False),
        ("X-Spamd-Result", "default: True [15.00 / 15.00]", True, True),
        ("X-Spam-Status", "Yes, score=6.0 required=5.0 tests=A,B autolearn=no", True, False),
        ("X-Spam-Status", "No, score=-2.6 required=5.0", False, False),
        ("X-Spam-Score", "99", True, True),
        ("X-Spam-Score", "many", False, False),
        ("X-Other", "99", False, False),
    ],
)
async def test_the_score_decides(plugin, field, value, tagged, held):
    content = message("hello\n", {field: value})
    answer = await plugin.says(Stages.message, transaction(), content)
    assert isinstance(answer, Hold) is held
    assert content.values("X-Spam-Flag") == ["YES"] * tagged
    assert content.values("Subject") == ["[SPAM] hello" if tagged else "hello"]


async def test_a_sender_cannot_talk_a_score_down(plugin):
    content = message(
        "hello\n", {"X-Spam-Score": "-99", "X-Spam-Status": "Yes, score=20.0", "X-Spam-Flag": "NO"}
    )
    assert await plugin.says(Stages.message, transaction(), content) == Hold("spam score 20")
    assert content.values("X-Spam-Flag") == ["YES"]


async def test_a_flag_that_came_along_is_taken_out(plugin):
    content = message("hello\n", {"X-Spam-Flag": "YES"})
    assert await plugin.says(Stages.message, transaction(), content) is None
    assert content.values("X-Spam-Flag") == []


def test_held_mail_is_in_the_queue_and_goes_nowhere(mailward_gateway, contrib):
    gateway = mailward_gateway(contrib("score_tag"))
    gateway.send("ann@example.com", ["a@elsewhere.example"], "X-Spam-Score: 20\n\nspam\n")
    gateway.send("ann@example.com", ["b@elsewhere.example"], "X-Spam-Score: 7\n\nmaybe\n")
    (arrived,) = gateway.arrived()
    assert b"X-Envelope-To: <b@elsewhere.example>\nX-Spam-Flag: YES\n" in arrived
    assert len(gateway.events("message.accepted")) == 2
