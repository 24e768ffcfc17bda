"""Commands that talk to the running gateway: status, reload, stages, queue, trace, demo."""

import json
import os
import smtplib
import time

import pytest

from gateway import console
from gateway.errors import ControlError
from gateway.events import MessageAccepted
from gateway.journal import Journal, read

EMPTY = "no message in the queue matches\n"


def jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


def send(port, recipient, sender="ann@example.com", text="Subject: hello\r\n\r\nhi\r\n"):
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
        client.sendmail(sender, [recipient], text)


def until(look, seconds=5.0):
    """Wait for another process's thread to get there; gives what it found."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def events(site, name):
    return [one for one in read(site.base / "var" / "journal") if one["event"] == name]


@pytest.fixture
def waiting(site, running):
    """A running gateway with one message for a host that nobody serves, in the queue, tried once."""
    port = running()
    send(port, "joe@elsewhere.example")
    (deferred,) = until(lambda: events(site, "delivery.deferred"))
    # The event is on disk before the recipient's new state is.
    until(lambda: {row["state"] for row in console.call(site.base / "var", "queue.stats")} == {"queued"})
    return deferred["message"]


def test_without_a_gateway_commands_say_how_to_start_one(site):
    for command in ("status", "reload"):
        assert "start one with `mailward run`" in site.mailward(command, code=1)
    with pytest.raises(ControlError, match="start one"):
        list(console.call(site.base / "var", "status"))


def test_status_is_one_screen_of_health(site, waiting):
    del waiting
    said = site.mailward("status")
    assert "mail.example.org, version 0" in said
    assert "mx smtp 127.0.0.1:0" in said
    assert "queue\t1 queued" in said
    assert "last error\tnone" in said
    (row,) = jsonl(site.mailward("status", "--json"))
    assert row["queue"] == [
        {
            "domain": "elsewhere.example",
            "state": "queued",
            "recipients": 1,
            "oldest": row["queue"][0]["oldest"],
            "ages": [1] + [0] * 9,
        }
    ]
    assert row["journal"]["full"] is False


def test_status_tells_the_last_error(site, running):
    running()
    site.write("60.yaml", "nonsense: 1\n")
    list(_failing_reload(site))
    until(lambda: events(site, "config.rejected"))
    (site.conf / "60.yaml").unlink()
    assert "config.rejected conf.d/60.yaml:1: nonsense: unknown section" in site.mailward("status")


def _failing_reload(site):
    with pytest.raises(ControlError, match=r"conf.d/60.yaml:1: nonsense: unknown section"):
        yield from console.call(site.base / "var", "reload")


def test_reload_says_what_changed_and_who_asked(site, running):
    running()
    site.write("50.yaml", "badmailfrom: {senders: [spam@example.com]}\nbounces: {enabled: false}\n")
    (site.base / "home" / "abc" / ".qmail-info").chmod(0o666)
    said = site.mailward("reload")
    assert "/home/abc/.qmail-info is writable for everybody" in said
    assert "removed: bounces" in said
    assert "changed: badmailfrom" in said
    loaded = until(lambda: events(site, "config.loaded")[1:])
    assert loaded[0]["actor"] == _me()
    assert loaded[0]["generation"] == 2


def _me():
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def test_a_reload_that_is_refused_leaves_the_old_configuration_running(site, running):
    port = running()
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "broken.py").write_text("1 / 0\n")
    site.write("50.yaml", "plugins: {folders: [plugins]}\n")
    assert "broken.py:1: ZeroDivisionError" in site.mailward("reload", code=1)
    site.write("50.yaml", "limits: {}\nlimits: {}\n")
    said = site.mailward("reload", code=1)
    assert "conf.d/50.yaml:2" in said
    assert "keeps its old configuration" in said
    send(port, "joe@example.org")
    until(lambda: events(site, "delivery.delivered"))


def test_reload_of_two_hundred_new_domains_takes_under_a_second_and_cuts_no_session(site, running):
    port = running()
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as session:
        session.ehlo("client.example")
        for number in range(200):
            name = f"d{number}.example"
            site.write(
                f"domain-{name}.yaml",
                f"virtual_domains: {{domains: {{{name}: abc}}}}\nrcpthosts: {{domains: [{name}]}}\n",
            )
        began = time.time()
        list(console.call(site.base / "var", "reload"))
        took = time.time() - began
        assert session.noop()[0] == 250
    send(port, "joe@d199.example")
    until(lambda: events(site, "delivery.delivered"))
    assert took < 1.0


def test_stages_say_what_each_plugin_of_the_running_chain_did(site, running):
    port = running()
    for count in (1, 2):
        send(port, "joe@example.org")
        rows = {row["stage"]: row["plugins"] for row in jsonl(site.mailward("stages", "--json"))}
        calls = rows["relay"][0]["calls"]
        assert (calls["asked"], calls["faults"], calls["timed"]) == (count, 0, count)
        assert calls["seconds"] >= calls["longest"] > 0
    # Who stands behind an answer was not asked.
    first, second = rows["relay"][:2]
    assert second["calls"]["asked"] == count - first["calls"]["answers"]


def test_stages_say_when_the_running_chain_is_another(site, running):
    running()
    assert "another chain" not in site.mailward("stages")
    site.write("50.yaml", "badmailfrom: {enabled: false}\n")
    assert "The running gateway has another chain" in site.mailward("stages")


def test_queue_list_show_and_stats(site, waiting):
    (row,) = jsonl(site.mailward("queue", "list", "--json"))
    assert row["id"] == waiting
    assert row["recipients"][0]["attempts"] == 1
    assert site.mailward("queue", "list", "--domain", "other.example") == EMPTY
    assert site.mailward("queue", "list", "--older-than", "1h") == EMPTY
    assert waiting in site.mailward("queue", "list", "--sender", "ann@example.com", "--state", "queued")
    shown = site.mailward("queue", "show", waiting)
    assert "Subject: hello" in shown
    assert "joe@elsewhere.example: 127.0.0.1" in shown
    assert site.mailward("queue", "stats").startswith("elsewhere.example\tqueued\t1\t")
    assert "mailward trace" in site.mailward("queue", "show", "nobody", code=1)


def test_a_change_needs_a_filter_or_all(site, waiting):
    assert "--all" in site.mailward("queue", "delete", code=2)
    assert "--all" in site.mailward("queue", "delete", "--all", "--id", waiting, code=2)
    assert "nothing was changed" in site.mailward("queue", "delete", "--domain", "example.org", code=1)
    assert "write a time" in site.mailward("queue", "delete", "--older-than", "soon", code=2)
    assert jsonl(site.mailward("queue", "list", "--json"))


def test_changes_to_the_queue_are_events_with_their_actor(site, waiting):
    for name, event in (
        ("hold", "message.held"),
        ("release", "message.released"),
        ("retry", "message.retried"),
    ):
        assert waiting in until(lambda name=name: _changed(site, name, waiting))
        (told,) = until(lambda event=event: events(site, event))
        assert (told["actor"], told["message"]) == (_me(), waiting)
    until(lambda: len(events(site, "delivery.deferred")) > 1)
    assert waiting in until(lambda: _changed(site, "delete", waiting))
    (told,) = until(lambda: events(site, "message.deleted"))
    assert told["recipients"] == ["joe@elsewhere.example"]
    assert site.mailward("queue", "list") == EMPTY


def _changed(site, name, message):
    """Change a message; "" while it is under an attempt, which no command disturbs."""
    try:
        return site.mailward("queue", name, "--id", message)
    except AssertionError:
        return ""


def test_queue_bounce_tells_the_sender(site, running):
    port = running()
    send(port, "joe@elsewhere.example", sender="ann@example.org")
    (deferred,) = until(lambda: events(site, "delivery.deferred"))
    assert until(lambda: _changed(site, "bounce", deferred["message"]))
    (told,) = until(lambda: events(site, "message.bounced"))
    assert (told["actor"], told["message"]) == (_me(), deferred["message"])
    until(lambda: list((site.base / "home" / "abc").glob("Maildir/new/*")))


def test_without_a_gateway_the_queue_commands_own_the_queue(site, gateway, running):
    with gateway() as port:
        send(port, "joe@elsewhere.example")
        (deferred,) = until(lambda: events(site, "delivery.deferred"))
        message = deferred["message"]
    assert message in site.mailward("queue", "list")
    assert message in site.mailward("queue", "hold", "--all")
    (told,) = events(site, "message.held")
    assert told["actor"] == _me()
    assert "held" in site.mailward("queue", "stats")
    assert "needs a running gateway" in site.mailward("queue", "bounce", "--all", code=1)
    site.mailward("queue", "suspend", "slow.example", "--reason", "full")
    running()
    said = site.mailward("status")
    assert "queue\t1 held" in said
    assert "suspended\tslow.example, ends by `mailward queue resume`: full" in said


def test_where_no_gateway_ever_ran_there_is_no_queue(site):
    assert "no gateway has run here" in site.mailward("queue", "list", code=1)
    assert not (site.base / "var").exists()


def test_trace_tells_the_whole_story(site, running):
    port = running()
    send(port, "joe@example.org")
    (done,) = until(lambda: events(site, "message.finished"))
    said = site.mailward("trace", done["message"])
    for name in ("session.opened", "recipient.accepted", "delivery.delivered", "message.finished"):
        assert name in said
    assert "conf.d/30-domains.yaml:3: example.org -> abc" in said
    names = [row["event"] for row in jsonl(site.mailward("trace", "ann@example.com", "--json"))]
    assert names[-1] == "message.finished"
    assert "knows no message nobody" in site.mailward("trace", "nobody", code=1)


def test_of_many_messages_trace_tells_the_newest_and_how_many_there_are(site):
    journal = Journal(site.base / "var" / "journal", "mail.example.org")
    journal.open()
    for number in range(25):
        for _ in range(100 if number == 24 else 2):
            journal.emit(MessageAccepted(message=f"01-{number:02d}", sender="ann@example.com"))
    journal.close()
    told = site.mailward("trace", "01-")
    assert "message 01-04\n" not in told
    assert "message 01-05\n" in told
    assert "5 older messages are meant, too" in told
    assert len(told.splitlines()) == 1 + 19 * 3 + 41
    assert "  ... 61 more lines: mailward trace 01-24\n" in told
    assert len(site.mailward("trace", "01-24").splitlines()) == 101
