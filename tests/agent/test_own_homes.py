"""Homes of the gateway's own user: a worker delivers to them, and nothing runs there with its rights."""

import os
import shutil
import smtplib

import pytest

OWN = "accounts: {{virtual: {{own: {{home: homes/own}}, shop: {{home: {joe}/shop}}}}}}\n"


@pytest.fixture
def own(site):
    """Give a home of the gateway's own user, and `shop`, which is said to be in joe's."""
    site.home["own"] = home = site.base / "homes" / "own"
    home.mkdir()
    os.chown(home, *site.users[site.gateway][2:4])
    joe = site.home[site.joe]
    joe.chmod(0o755)
    site.configure(OWN.format(joe=joe))
    site.reload()
    yield home
    site.configure()
    site.reload()
    joe.chmod(0o700)
    (joe / "shop").unlink(missing_ok=True)
    shutil.rmtree(home)


def test_files_are_written_and_no_program_runs(site, own):
    new = site.maildir("own")
    site.qmail("own", "./Maildir/\n")
    assert site.fate("own")["event"] == "delivery.delivered"
    assert len(list(new.iterdir())) == 1
    site.qmail("own", f"./Mailbox\n|cat {site.state}/secret > {own}/seen\n")
    fate = site.fate("own")
    assert fate["event"] == "delivery.deferred"
    assert "no program runs as the gateway's own user" in fate["text"]
    assert not (own / "seen").exists()
    # Each attempt would write it again.
    assert not (own / "Mailbox").exists()


def test_the_gateway_writes_nowhere_that_a_user_can_turn(site, own):
    new = site.maildir("own")
    site.qmail("own", "./Maildir/\n")
    (site.home[site.joe] / "shop").symlink_to(own)
    # The client is told to come again: whether the home takes it cannot be told.
    code, _ = refused(site, "shop")
    assert (code, list(new.iterdir())) == (451, [])
    site.until(lambda: any("must belong to root" in str(one) for one in site.events()))


def refused(site, name):
    with smtplib.SMTP("127.0.0.1", site.port, "client.example") as client:
        client.ehlo()
        client.docmd("MAIL FROM:<a@example.com>")
        return client.docmd(f"RCPT TO:<{name}@example.org>")
