"""`mailward queue` as a person works it: beside a running gateway, and without one."""

import contextlib
import json
import smtplib
import time

import pytest
from click.testing import CliRunner

from gateway.commands.group import mailward
from gateway.journal import read

INVOICE = "Subject: Your invoice 7\r\nMessage-ID: <7@shop.example>\r\n\r\nPay \xe9!\r\n.dot\r\n"
HELLO = "Subject: hello\r\n\r\nhi\r\n"
SCANNER = """\
from gateway import Hold, Plugin, Stages, hookimpl

class Scanner(Plugin):
    @hookimpl
    def message(self, transaction, message):
        return Hold("a virus?") if "invoice" in message.values("Subject")[0] else None
"""


def jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


def until(look, seconds=10.0):
    """Wait for another thread to get there; gives what it found."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("it never came")


def events(site, name):
    return [one for one in read(site.base / "var" / "journal") if one["event"] == name]


def delivered(site, name):
    return [path.read_bytes() for path in (site.base / "home" / name).glob("Maildir/new/*")]


def put_off(site):
    """Give the ids of what waits, once the dispatcher has let go of all of it."""
    rows = jsonl(site.mailward("queue", "list", "--json"))
    waiting = [one for row in rows for one in row["recipients"]]
    settled = all(one["state"] == "held" or one["due"] > time.time() + 60 for one in waiting)
    return settled and [row["id"] for row in rows]


def ids(site, *arguments):
    """Give the ids that `queue list` finds; none is no fault."""
    said = site.mailward("queue", "list", "--json", *arguments)
    return [row["id"] for row in jsonl(said)] if said.startswith("{") else []


@pytest.fixture
def send(site, running):
    """Give `send(recipient, sender, text)`, over a gateway that waits with mail for elsewhere.example."""
    started = []

    def send(recipient="joe@elsewhere.example", sender="ann@example.com", text=HELLO):
        if not started:
            started.append(running())
            site.mailward("queue", "suspend", "elsewhere.example", "--reason", "their disk is full")
        with smtplib.SMTP("127.0.0.1", started[0], timeout=5) as client:
            client.sendmail(sender, [recipient], text.encode("latin-1"))
        return until(lambda: put_off(site))[-1]

    return send


def test_messages_are_found_by_what_is_known_of_them(site, send):
    invoice = send(text=INVOICE)
    bounce = send("sue@elsewhere.example", sender="")
    for arguments, found in (
        (["--subject", "*INVOICE*"], [invoice]),
        (["--subject", "invoice"], []),
        (["--message-id", "<7@shop.example>"], [invoice]),
        (["--sender", "<ann@example.com>"], [invoice]),
        (["--sender", "<>"], [bounce]),
        (["--recipient", "s??@*"], [bounce]),
        (["--client", "127.0.0.0/8"], [invoice, bounce]),
        (["--client", "192.0.2.*"], []),
        (["--user", "*"], []),
        (["--older-than", "2001-01-01"], []),
        (["--since", "2001-01-01 10:00"], [invoice, bounce]),
        (["--id", bounce, "--id", invoice, "--domain", "*where.example"], [invoice, bounce]),
    ):
        assert ids(site, *arguments) == found, arguments


def test_show_prints_the_message(site, send):
    invoice = send(text=INVOICE)
    shown = site.mailward("queue", "show", invoice, "--body")
    assert "s ago, by smtp, " in shown
    assert "Subject: Your invoice 7\n" in shown
    assert "\nPay \ufffd!\n.dot\n" in shown
    assert "elsewhere.example is suspended" in shown
    raw = CliRunner().invoke(mailward, ["queue", "show", invoice, "--raw", "--conf", str(site.conf)])
    assert raw.stdout_bytes.startswith(b"Received: ")
    assert raw.stdout_bytes.endswith(b"Message-ID: <7@shop.example>\n\nPay \xe9!\n.dot\n")
    assert "exclude" in site.mailward("queue", "show", invoice, "--raw", "--json", code=2)


def test_a_dry_run_changes_nothing(site, send):
    invoice = send(text=INVOICE)
    for verb in ("retry", "hold", "delete", "bounce", "redirect", "reroute", "suspend"):
        what = {"redirect": ["ann@example.net", "--all"], "suspend": ["elsewhere.example"]}.get(
            verb, ["--all"]
        )
        said = site.mailward("queue", verb, *what, "--dry-run")
        assert said.startswith("would ")
        assert invoice in said
    assert "nothing was changed" in site.mailward("queue", "release", "--all", "--dry-run", code=1)
    (row,) = jsonl(site.mailward("queue", "list", "--json", "--state", "queued"))
    assert row["recipients"][0]["address"] == "joe@elsewhere.example"
    names = {one["event"] for one in read(site.base / "var" / "journal") if one.get("message") == invoice}
    assert names.isdisjoint({"message.retried", "message.held", "message.deleted", "message.redirected"})


def test_what_is_empty_or_wrong_does_not_mean_all(site, send):
    waiting = send()
    for arguments in (["--sender", ""], ["--id", "-"], ["--client", "1.2.3.4/99"], ["--since", "2026-13-01"]):
        assert "Error" in site.mailward("queue", "delete", "--domain", "*", *arguments, code=2), arguments
    assert ids(site) == [waiting]


def test_ids_stand_alone_and_their_beginning_is_enough_to_see_one(site, send):
    invoice, hello = send(text=INVOICE), send()
    assert invoice in site.mailward("queue", "hold", invoice, "--domain", "elsewhere.example")
    assert ids(site, "--state", "held") == [invoice]
    assert "say which messages" in site.mailward("queue", "hold", hello, "--all", code=2)
    said = site.mailward("queue", "redirect", "ann@example.net", hello, invoice, "--dry-run")
    assert [line.split("\t")[1] for line in said.splitlines()] == [invoice, hello]
    same = next(at for at in range(len(hello)) if hello[at] != invoice[at])
    assert "Subject: Your invoice 7" in site.mailward("queue", "show", invoice[: same + 1].upper())
    assert f"begin so, {invoice} and {hello}" in site.mailward("queue", "show", invoice[:same], code=1)
    assert "no message 01-nothing is in the queue" in site.mailward("queue", "show", "01-nothing", code=1)
    site.mailward("queue", "delete", invoice)
    assert ids(site) == [hello]


def test_ids_come_from_another_command(site, send):
    wanted = send(text=INVOICE)
    send()
    listed = site.mailward("queue", "list", "--subject", "*invoice*")
    command = ["queue", "delete", "--id", "-", "--conf", str(site.conf)]
    assert wanted in CliRunner().invoke(mailward, command, input=listed).output
    assert len(ids(site)) == 1


def test_a_redirected_message_goes_to_the_other_address(site, send):
    waiting = send()
    assert "redirected" in site.mailward("queue", "redirect", "Ann@example.net", "--id", waiting)
    (content,) = until(lambda: delivered(site, "xyz"))
    assert b"Subject: hello" in content
    (told,) = events(site, "message.redirected")
    assert (told["message"], told["to"]) == (waiting, "Ann@example.net")
    assert told["recipients"] == ["joe@elsewhere.example"]
    assert "wanted" in site.mailward("queue", "redirect", "joe", "--all", code=1)


def test_a_rerouted_message_goes_where_the_configuration_says_now(site, send):
    waiting = send()
    assert ids(site, "--plugin", "remote", "--state", "queued") == [waiting]
    site.write("50.yaml", "virtual_domains: {domains: {elsewhere.example: abc}}\n")
    site.mailward("reload")
    site.mailward("queue", "reroute", "--domain", "elsewhere.example")
    site.mailward("queue", "resume", "elsewhere.example")
    assert until(lambda: delivered(site, "abc"))
    assert [one["message"] for one in events(site, "message.rerouted")] == [waiting]


def test_a_suspended_destination_waits_over_a_restart(site, gateway):
    with gateway() as port:
        site.mailward("queue", "suspend", "*.example.net", "--for", "2h", "--reason", "we move")
        with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
            client.sendmail("ann@example.com", ["joe@mx.example.net"], HELLO)
        until(lambda: "\tsuspended\t" in site.mailward("queue", "list"))
    assert site.mailward("queue", "suspended").startswith("*.example.net\t")
    with gateway():
        (row,) = jsonl(site.mailward("queue", "suspended", "--json"))
        assert (row["destination"], row["reason"]) == ("*.example.net", "we move")
        assert row["until"] - row["since"] == 7200
        assert not events(site, "delivery.started")
    assert "*.example.net" in site.mailward("queue", "resume", "*.example.net")
    assert "no destination is suspended" in site.mailward("queue", "suspended")
    assert "is not suspended" in site.mailward("queue", "resume", "*.example.net", code=1)
    with gateway():
        until(lambda: events(site, "delivery.started"))
    assert [one["reason"] for one in events(site, "destination.suspended")] == ["we move"]
    assert len(events(site, "destination.resumed")) == 1


def test_what_a_plugin_holds_says_why(site, send):
    plugins = site.base / "plugins"
    plugins.mkdir()
    (plugins / "scanner.py").write_text(SCANNER)
    site.write("60.yaml", "plugins: {folders: [plugins]}\n")
    held = send("ann@example.org", text=INVOICE)
    (told,) = until(lambda: events(site, "message.held"))
    assert (told["message"], told["plugin"], told["reason"]) == (held, "scanner", "a virus?")
    assert told["client.ip"] == "127.0.0.1"
    assert "\theld\t0\t\ta virus?" in site.mailward("queue", "list", "--plugin", "scanner")
    assert "held: a virus? (scanner)" in site.mailward("queue", "show", held)
    site.mailward("queue", "release", "--plugin", "scanner")
    assert until(lambda: delivered(site, "abc"))


def test_stats_count_by_age(site, send):
    send()
    send("sue@elsewhere.example")
    (line,) = site.mailward("queue", "stats").splitlines()
    domain, state, count, oldest, *ages = line.split("\t")
    assert (domain, state, count, ages) == ("elsewhere.example", "queued", "2", ["2", *["0"] * 9])
    assert oldest.endswith("s")


def test_without_a_gateway_all_shards_are_asked(site, gateway):
    for number in range(2):
        with gateway() as port, smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
            site.mailward("queue", "suspend", "*")
            client.sendmail(f"s{number}@example.com", ["joe@elsewhere.example"], HELLO)
        if not number:
            # What a worker has left that is no more.
            (site.base / "var" / "queue" / "shard-0").rename(site.base / "var" / "queue" / "shard-5")
            with contextlib.suppress(FileNotFoundError):
                (site.base / "var" / "journal" / "shard-0").rename(site.base / "var" / "journal" / "shard-5")
    rows = jsonl(site.mailward("queue", "list", "--json"))
    assert [row["sender"] for row in rows] == ["s0@example.com", "s1@example.com"]
    assert site.mailward("queue", "stats").startswith("elsewhere.example\tqueued\t2\t")
    assert len(site.mailward("queue", "hold", "--sender", "s?@example.com").splitlines()) == 2
    assert len(events(site, "message.held")) == 2
