"""What ezmlm-idx, which Debian does not have, needs of its host: played by `addons/ezmlm`.

Its dot files are links into a closed folder; its programs share one message, read the variables of
qmail-command, and queue a post by one call of `bin/qmail-queue` for all members.
"""

import json
import sys
import time

import pytest
from peer import eventually

from gateway import console

MANY = 100_000
#: Takes all mail for null.example, and writes down who got it from which sender.
NULL = '''\
"""null: deliver to nobody, and say to whom."""

from gateway import Delivery, Outcome, Plugin, Recipient, Route, hookimpl


class Null(Plugin):
    @hookimpl
    def route(self, recipient: Recipient) -> Route | None:
        domain = recipient.address.domain
        if domain.endswith(".null.example"):
            return Route("null", "remote", domain)
        return None

    @hookimpl
    def deliver(self, delivery: Delivery) -> list[Outcome]:
        with (self.site.state / "null").open("a") as file:
            file.writelines(f"{delivery.sender} {one.recipient.address}\\n" for one in delivery.recipients)
        return [Outcome(one.number, "delivered") for one in delivery.recipients]
'''


@pytest.fixture
def folder(host):
    """Make the list as ezmlm-make lays it out: links beside the other dot files, a folder of mode 0700."""
    home = host.folder / "home" / "abc"
    made = home / "list"
    made.mkdir(exist_ok=True)
    made.chmod(0o700)
    host.own(made)
    program = f"|QMAILHOME={host.prefix} {sys.executable} {host.take('ezmlm', 'ezmlm')}"
    files = {
        "editor": [
            f"{program} record list/seen",
            f"{program} record list/seen",
            f"{program} send list/members list-return-1-@example.org-@[] || exit 111",
            "|exit 99",
            f"{program} record list/never",
        ],
        "manager": [f"{program} record list/asked"],
        "bouncer": [f"{program} record list/bounced"],
        "owner": ["./Maildir/"],
    }
    for name, lines in files.items():
        (made / name).write_text("".join(f"{line}\n" for line in lines))
        host.own(made / name)
    links = {"": "editor", "-default": "manager", "-owner": "owner", "-return-default": "bouncer"}
    for link, name in links.items():
        path = home / f".qmail-list{link}"
        path.unlink(missing_ok=True)
        path.symlink_to(made / name)
    return made


def seen(path):
    """Wait for what was recorded."""
    eventually(lambda: path.exists() and path.read_text().endswith("\n"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_post_goes_to_the_members_and_failures_come_back(host, folder):
    host.home("xyz", gone="|echo no longer here; exit 100\n", left="|echo has left; exit 100\n")
    (folder / "members").write_text("ann@example.net\ngone@example.net\nleft@example.net\n")
    host.send("list@example.org", "ezmlm 1", sender="bob@elsewhere.example")
    (post,) = host.received(1, having="Subject: ezmlm 1\n", account="xyz")
    # As in qmail, the address after virtualdomains: members elsewhere show theirs.
    assert post.startswith(b"Return-Path: <list-return-1-xyz-ann=example.net@example.org>\n")
    assert b"\nDelivered-To: mailing list\n" in post

    # One bounce for all that failed, in the format that ezmlm-return reads.
    (bounce,) = seen(folder / "bounced")
    assert bounce["environment"]["DEFAULT"] == "1-"
    assert bounce["environment"]["SENDER"] == ""
    head, _, report = bounce["message"].partition("\n\n")
    assert "Auto-Submitted" not in head
    assert report.startswith("Hi. This is the ")
    assert "\n\n<gone@example.net>:\nno longer here\n" in report
    assert "\n\n<left@example.net>:\nhas left\n" in report
    assert "\n\n--- A copy of the message follows.\n\n" in report
    host.idle()

    first, second = seen(folder / "seen")
    assert (first["at"], second["at"]) == (0, 0)
    assert first["message"] == second["message"]
    assert "Return-Path:" not in first["message"]
    assert "Delivered-To:" not in first["message"]
    assert not (folder / "never").exists()


def test_programs_see_qmails_variables(host, folder):
    host.send("list-subscribe-Ann=Example.NET@Example.ORG", "ezmlm 2", sender="bob+tag@elsewhere.example")
    (asked,) = seen(folder / "asked")
    home = str(host.folder / "home" / "abc")
    assert asked["folder"] == home
    found = asked["environment"]
    found.pop("UFLINE")
    for own in ("PATH", "PWD", "QMAILHOME", "LC_CTYPE", "_", "SHLVL", "OLDPWD"):
        found.pop(own, None)
    assert found == {
        "SENDER": "bob+tag@elsewhere.example",
        "NEWSENDER": "bob+tag@elsewhere.example",
        "RECIPIENT": "abc-list-subscribe-Ann=Example.NET@Example.ORG",
        "USER": "abc",
        "HOME": home,
        "LOCAL": "abc-list-subscribe-Ann=Example.NET",
        "HOST": "Example.ORG",
        "HOST2": "Example",
        "HOST3": "Example",
        "HOST4": "Example",
        "EXT": "list-subscribe-Ann=Example.NET",
        "EXT2": "subscribe-Ann=Example.NET",
        "EXT3": "Ann=Example.NET",
        "EXT4": "",
        "DEFAULT": "subscribe-Ann=Example.NET",
        "DTLINE": "Delivered-To: abc-list-subscribe-Ann=Example.NET@Example.ORG\n",
        "RPLINE": "Return-Path: <bob+tag@elsewhere.example>\n",
    }
    host.idle()


def test_the_list_itself_has_no_default_and_its_owner_gets_the_failures(host, folder):
    (folder / "members").write_text("ann@example.net\n")
    (folder / "seen").unlink(missing_ok=True)
    host.send("list@example.org", "ezmlm 3", sender="bob@elsewhere.example")
    found = seen(folder / "seen")[0]["environment"]
    assert "DEFAULT" not in found
    # `.qmail-list-owner` exists.
    assert found["NEWSENDER"] == "abc-list-owner@example.org"
    host.idle()


def test_a_post_that_cannot_be_queued_waits(host, folder):
    (folder / "members").write_text("ann@example.net\n")
    queue = host.prefix / "bin" / "qmail-queue"
    queue.rename(queue.with_name("moved"))
    try:
        host.send("list@example.org", "ezmlm 4", sender="bob@elsewhere.example")
        host.deferred("list@example.org")
    finally:
        queue.with_name("moved").rename(queue)
    host.received(1, having="Subject: ezmlm 4\n", account="xyz")
    host.idle()


def memory(gateway):
    """Give the most memory that the gateway's processes have used, in MiB."""
    lines = "".join((path / "status").read_text() for path in gateway.processes())
    return sum(int(line.split()[1]) for line in lines.splitlines() if line.startswith("VmHWM:")) // 1024


def test_a_hundred_thousand_members_in_one_submission(host, folder):
    """All are accepted at once; the first thousand show that each has a sender of its own."""
    members = [f"m{n}@h{n % 1000}.null.example" for n in range(MANY)]
    (folder / "members").write_text("".join(f"{member}\n" for member in members))
    host.plug("null", NULL)
    host.mailward("reload")
    before = memory(host)
    began = time.monotonic()
    host.send("list@example.org", "ezmlm 5", sender="bob@elsewhere.example")
    taken = host.state / "null"
    eventually(taken.exists, 30)
    assert time.monotonic() - began < 30
    eventually(lambda: taken.read_bytes().count(b"\n") >= 1000, 30)
    accepted = host.events("list-return-1-@example.org-@[]", "message.accepted")
    assert [one["origin"] for one in accepted if one["recipients"] == MANY] == ["submit"]
    told = taken.read_text().splitlines()
    assert len(told) == len(set(told))
    assert set(told) <= {f"list-return-1-{one.replace('@', '=')}@example.org {one}" for one in members}
    waiting = sum(one["recipients"] for one in console.call(host.state, "queue.stats"))
    assert waiting < MANY <= waiting + taken.read_bytes().count(b"\n")
    assert memory(host) - before < 400
