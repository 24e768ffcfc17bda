"""procmail, maildrop and vacation from Debian, called by `.qmail` lines, unmodified."""

import pytest
from peer import eventually


def contents(folder):
    """Read what a filter put into a Maildir that it has made itself."""
    return [path.read_bytes() for path in (folder / "new").glob("*")]


@pytest.fixture
def home(host):
    return host.folder / "home" / "abc"


@pytest.mark.peer("procmail")
class TestProcmail:
    @pytest.fixture(autouse=True)
    def _rules(self, host):
        host.take("procmailrc", ".procmailrc")
        host.home(
            "abc",
            **{
                "procmail": "|preline procmail -m .procmailrc\n",
                "procmail-f": "|preline -f procmail -t -f -\n",
            },
        )

    @pytest.mark.parametrize("how", ["procmail", "procmail-f"])
    def test_its_rules_choose_the_folder(self, host, home, how):
        host.send(f"{how}@example.org", "procmail: folder", text=f"From <{how}>\n")
        (kept,) = eventually(
            lambda: [one for one in contents(home / "procmail") if f"From <{how}>".encode() in one]
        )
        assert b"Return-Path: <ann@example.net>\nDelivered-To: abc-" + how.encode() in kept

    def test_what_no_rule_takes_goes_to_its_default(self, host):
        host.send("procmail@example.org", "procmail: nothing special")
        host.received(1, having="procmail: nothing special")

    def test_it_forwards_by_our_sendmail(self, host):
        host.send("procmail@example.org", "procmail: forward")
        (kept,) = host.received(1, having="procmail: forward", account="xyz")
        assert b"\nDelivered-To: xyz-friend@example.net\n" in kept
        assert b"\nDelivered-To: abc-procmail@example.org\n" in kept

    def test_its_refusal_is_a_bounce(self, host):
        host.send("procmail@example.org", "procmail: refuse")
        (bounce,) = host.received(1, having="Subject: procmail: refuse", account="xyz")
        assert b"failure notice" in bounce

    def test_what_it_defers_comes_later(self, host, home):
        host.send("procmail@example.org", "procmail: wait")
        host.deferred("procmail@example.org")
        (home / "ready").touch()
        host.received(1, having="procmail: wait")


@pytest.mark.peer("maildrop")
class TestMaildrop:
    @pytest.fixture(autouse=True)
    def _rules(self, host, home):
        host.take("mailfilter", "mailfilter")
        host.home("abc", maildrop="|maildrop mailfilter\n")
        host.maildir_at(home / "maildrop")

    def test_its_rules_choose_the_folder(self, host, home):
        host.send("maildrop@example.org", "maildrop: folder")
        (kept,) = eventually(lambda: contents(home / "maildrop"))
        assert b"Subject: maildrop: folder\n" in kept

    def test_what_no_rule_takes_goes_to_its_default(self, host):
        host.send("maildrop@example.org", "maildrop: nothing special")
        host.received(1, having="maildrop: nothing special")

    def test_it_forwards_by_our_sendmail(self, host):
        host.send("maildrop@example.org", "maildrop: forward")
        (kept,) = host.received(1, having="maildrop: forward", account="xyz")
        assert b"\nDelivered-To: xyz-friend@example.net\n" in kept

    def test_its_refusal_is_a_bounce(self, host):
        host.send("maildrop@example.org", "maildrop: refuse")
        (bounce,) = host.received(1, having="Subject: maildrop: refuse", account="xyz")
        assert b"failure notice" in bounce

    def test_filters_that_others_may_write_defer_the_mail(self, host, home):
        (home / "mailfilter").chmod(0o666)
        host.send("maildrop@example.org", "maildrop: unsafe")
        host.deferred("maildrop@example.org")
        (home / "mailfilter").chmod(0o600)
        host.received(1, having="maildrop: unsafe")


@pytest.mark.peer("vacation")
class TestVacation:
    @pytest.fixture(autouse=True)
    def _message(self, host, home):
        host.take("vacation.msg", ".vacation.msg")
        (home / ".vacation.db").unlink(missing_ok=True)
        host.home("abc", abc="./Maildir/\n|preline vacation abc\n")

    def test_it_answers_once_by_our_sendmail(self, host):
        for number in (1, 2):
            host.send("abc@example.org", f"vacation {number}")
            host.received(1, having=f"Subject: vacation {number}\n")
            host.idle()
        (answer,) = host.received(1, having="Back in May.", account="xyz")
        assert b"\nSubject: away, about vacation 1\n" in answer
        assert b"\nDelivered-To: xyz-ann@example.net\n" in answer
        assert b"\nTo: ann@example.net\n" in answer

    def test_lists_and_machines_get_no_answer(self, host):
        before = len(host.messages("xyz"))
        host.send("abc@example.org", "vacation: none, 1", Precedence="bulk")
        host.send("abc@example.org", "vacation: none, 2", Auto_Submitted="auto-replied")
        host.send("abc@example.org", "vacation: none, 3", sender="list-request@example.net")
        host.received(3, having="Subject: vacation: none")
        host.idle()
        assert len(host.messages("xyz")) == before
