"""The tool kit does what its page says."""

import smtplib

import pytest

from gateway import Defer, Reject, Stages
from gateway.errors import ConfigError
from gateway.testing import Letter, delivery, message, read_message, recipient, replay, transaction

MOODS = '''"""moods: says what the sender's name says."""
from gateway import Defer, Message, Plugin, Reject, Section, Transaction, hookimpl

class Settings(Section):
    word: str = "no"

class Moods(Plugin[Settings]):
    @hookimpl
    def mail(self, transaction: Transaction) -> Reject | None:
        if transaction.sender.startswith("bad"):
            return Reject("5.7.1", self.settings.word)
        if transaction.sender.startswith("late") and self.clock.now().hour > 20:
            return Defer("4.7.1", "too late")
        if transaction.sender.startswith("boom"):
            raise RuntimeError("boom")

    @hookimpl
    def incoming(self, message: Message) -> Message:
        message.prepend("X-Mood", "good")
        return message
'''


@pytest.fixture
def moods(tmp_path):
    path = tmp_path / "made" / "moods.py"
    path.parent.mkdir()
    path.write_text(MOODS)
    return path


async def test_a_plugin_says_what_it_says(mailward_plugin, mailward_clock, moods):
    plugin = mailward_plugin(moods, "moods: {word: never}")
    assert await plugin.says(Stages.mail, transaction("bad@example.com")) == Reject("5.7.1", "never")
    assert await plugin.says(Stages.mail, transaction("late@example.com")) == Defer("4.7.1", "too late")
    mailward_clock.advance(12 * 3600)
    assert await plugin.says(Stages.mail, transaction("late@example.com")) is None


async def test_a_failure_shows_the_traceback(mailward_plugin, moods):
    plugin = mailward_plugin(moods, "moods: {on_error: skip}")
    with pytest.raises(AssertionError, match=r"in mail\n(.|\n)*RuntimeError: boom"):
        await plugin.says(Stages.mail, transaction("boom@example.com"))


async def test_a_message_is_replayed_from_a_file(mailward_plugin, moods, tmp_path):
    (tmp_path / "one.eml").write_bytes(b"Subject: hello\r\n\r\nhello\r\n")
    content = read_message(tmp_path / "one.eml")
    heard = await replay(mailward_plugin(moods).chain, Letter(content, "bad@example.com"), "moods")
    assert [(one.stage, one.value) for one in heard[:1]] == [("mail", Reject("5.7.1", "no"))]
    assert heard[1].stage == "incoming"
    assert heard[1].edited == b"X-Mood: good\nSubject: hello\n\nhello\n"
    assert bytes(content) == b"Subject: hello\n\nhello\n"


async def test_a_replay_asks_the_whole_chain(mailward_plugin, moods):
    heard = await replay(mailward_plugin(moods, "locals: {domains: [example.org]}").chain, Letter())
    said = {(one.stage, one.plugin) for one in heard if one.value is not None}
    assert {
        ("incoming", "received"),
        ("incoming", "moods"),
        ("route", "remote"),
        ("bounce", "bounces"),
    } <= said


def test_builders_make_what_the_stages_get():
    made = transaction("ann@example.com", ip="2001:db8::1", to=["bob@example.org"])
    assert made.session.client.ip == "2001:db8::1"
    assert [one.address for one in made.recipients] == [recipient("bob@example.org").address]
    assert transaction(session=None, origin="bounce").session is None
    content = message("text\n", {"Subject": "other", "X-More": "yes"})
    assert content.values("Subject") == ["other"]
    assert content.values("X-More") == ["yes"]
    assert content.body == b"\ntext\n"
    assert delivery().recipients[0].recipient.address == "info@example.org"


def test_a_gateway_runs_with_the_plugin(mailward_gateway, moods):
    gateway = mailward_gateway(moods, yaml="moods: {word: never}")
    gateway.send("ann@example.com", ["friend@elsewhere.example"])
    (arrived,) = gateway.arrived()
    assert b"X-Envelope-From: <ann@example.com>\n" in arrived
    assert b"X-Mood: good\n" in arrived
    with pytest.raises(smtplib.SMTPSenderRefused, match="never"):
        gateway.send("bad@example.com", ["friend@elsewhere.example"])
    gateway.reload("moods: {word: not today}")
    with pytest.raises(smtplib.SMTPSenderRefused, match="not today"):
        gateway.send("bad@example.com", ["friend@elsewhere.example"])
    assert [one["reply"] for one in gateway.wait_for("sender.refused", 2)] == [
        "5.7.1 never",
        "5.7.1 not today",
    ]


def test_a_gateway_that_cannot_start_says_why(mailward_gateway, moods):
    with pytest.raises(ConfigError, match=r"moods\.words"):
        mailward_gateway(moods, yaml="moods: {words: never}")
