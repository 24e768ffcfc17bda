"""badmailfrom: listed senders are refused at each recipient."""

import pytest

from gateway import ConfigError, Recipient, Reject, Stages

LISTED = 'badmailfrom: {senders: [bad@spam.example, "@Worse.example"]}\n'


async def rcpt(chain, one):
    return (await chain.ask(Stages.rcpt, one, Recipient.of("u@example.org"))).value


@pytest.mark.parametrize(
    "sender",
    ["bad@spam.example", "BAD@Spam.example", "x@worse.example", "X@WORSE.EXAMPLE", "a@b@worse.example"],
)
async def test_a_listed_sender_is_refused(chain_of, transaction, sender):
    said = await rcpt(chain_of(LISTED, "badmailfrom"), transaction(sender=sender))
    assert (type(said), said.status, said.reason) == (Reject, "5.7.1", "bad_sender")
    assert "example" not in said.text


@pytest.mark.parametrize(
    "sender", ["", "good@spam.example", "x@sub.worse.example", "worse.example", "x@worse.example.org", "bad"]
)
async def test_others_get_no_opinion(chain_of, transaction, sender):
    assert await rcpt(chain_of(LISTED, "badmailfrom"), transaction(sender=sender)) is None


async def test_mail_itself_is_not_refused(chain_of, transaction):
    chain = chain_of(LISTED, "badmailfrom")
    assert (await chain.ask(Stages.mail, transaction(sender="bad@spam.example"))).value is None


async def test_a_qmail_file_counts_too_and_the_rule_names_its_line(chain_of, transaction, tmp_path):
    (tmp_path / "bad").write_text("#\nme@file.example\n")
    chain = chain_of("badmailfrom: {file: bad}\n", "badmailfrom")
    said = await rcpt(chain, transaction(sender="me@file.example"))
    assert said.rule == f"{tmp_path}/bad:2: me@file.example"


@pytest.mark.parametrize("senders", ["[spam.example]", '[""]', '["@"]'])
def test_an_entry_that_could_never_match_is_an_error(chain_of, senders):
    with pytest.raises(ConfigError, match=r"conf.d/10.yaml:1: .*no sender"):
        chain_of(f"badmailfrom: {{senders: {senders}}}\n", "badmailfrom")


def test_a_missing_file_is_an_error(chain_of):
    with pytest.raises(ConfigError, match=r"conf.d/10.yaml:1: .*No such file"):
        chain_of("badmailfrom: {file: gone}\n", "badmailfrom")
