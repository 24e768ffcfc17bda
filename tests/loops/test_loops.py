"""Mail that would go in circles: it is stopped, its sender hears of it once, and there is no storm."""

import re

import pytest


def failed(gateway):
    return [event["status"] for event in gateway.events("delivery.failed")]


async def test_two_gateways_that_forward_to_each_other(sites):
    both = await sites("a", "b")
    a, b = both.gateways
    a.home(x="&x@b.example\n")
    b.home(x="&x@a.example\n")
    assert (await both.send(a, "x@a.example"))[0] == 250
    # In by SMTP, on to b, back to a, where the second pass is seen.
    assert a.counts() == {"smtp": 2, "forward": 1, "bounce": 1}
    assert b.counts() == {"smtp": 1, "forward": 1}
    assert failed(a) == ["5.4.6"]
    (bounce,) = a.mail()
    assert b"looping" in bounce
    assert b.mail() == []


@pytest.mark.parametrize("hops", [5, 20])
async def test_two_gateways_that_route_a_domain_to_each_other(sites, hops):
    routes = {"a": {"loop.example": "b"}, "b": {"loop.example": "a"}}
    both = await sites("a", "b", routes=routes, hops=hops)
    a, b = both.gateways
    await both.send(a, "x@loop.example")
    smtp = a.counts()["smtp"] + b.counts()["smtp"]
    bounces = a.counts()["bounce"] + b.counts()["bounce"]
    # A bounce by b goes to a by SMTP, to the sender's Maildir.
    assert smtp == hops + b.counts()["bounce"]
    assert bounces == 1
    (bounce,) = a.mail()
    assert b"5.4.6" in bounce
    assert b.mail() == []


async def test_aliases_of_two_gateways_that_name_each_other(sites):
    names = "aliases: {{before: [virtual_domains], domains: [{}.example], names: {{x: [x@{}.example]}}}}"
    more = {"a": names.format("a", "b"), "b": names.format("b", "a")}
    both = await sites("a", "b", more=more, hops=10)
    a, b = both.gateways
    await both.send(a, "x@a.example")
    assert a.counts()["bounce"] + b.counts()["bounce"] == 1
    assert sum(a.counts().values()) + sum(b.counts().values()) <= 10 + 3
    (bounce,) = a.mail()
    assert b"<x@" in bounce
    assert b"5.4.6" in bounce


ALIASES = "aliases: {before: [virtual_domains], domains: [a.example], names: {x: [y], y: [z], z: [x]}}\n"


async def test_aliases_in_a_circle(sites):
    both = await sites("a", more={"a": ALIASES})
    (a,) = both.gateways
    await both.send(a, "x@a.example")
    assert a.counts() == {"smtp": 1, "bounce": 1}
    assert failed(a) == ["5.4.6"]
    assert b"leads back to itself" in a.mail()[0]


async def test_aliases_in_a_circle_are_refused_at_once_where_recipients_are_checked(sites):
    both = await sites("a", more={"a": ALIASES.replace("aliases:", "recipient_check: {}\naliases:")})
    (a,) = both.gateways
    code, text = await both.send(a, "x@a.example")
    assert (code, text) == (550, "5.1.1 no such user here")
    assert a.counts() == {}


@pytest.mark.parametrize(
    ("files", "forwards"),
    [
        ({"x": "&x@a.example\n"}, 1),
        ({"x": "&y@a.example\n", "y": "&z@a.example\n", "z": "&x@a.example\n"}, 3),
    ],
)
async def test_qmail_files_in_a_circle(sites, files, forwards):
    both = await sites("a")
    (a,) = both.gateways
    a.home(**files)
    await both.send(a, "x@a.example")
    assert a.counts() == {"smtp": 1, "forward": forwards, "bounce": 1}
    assert failed(a) == ["5.4.6"]
    assert len(a.mail()) == 1


async def test_lists_that_are_members_of_each_other(sites):
    both = await sites("a", "b")
    a, b = both.gateways
    a.home(l="&member@a.example\n&l@b.example\n", l_owner="./Maildir/\n", l_owner_default="./Maildir/\n")
    b.home(l="&l@a.example\n&member@b.example\n", l_owner="./Maildir/\n", l_owner_default="./Maildir/\n")
    await both.send(a, "l@a.example", sender="s@b.example")
    posts = [mail for one in both.gateways for mail in one.mail() if b"failure notice" not in mail]
    assert sorted(re.search(rb"Delivered-To: (\S+)", mail)[1] for mail in posts) == [
        b"abc-member@a.example",
        b"abc-member@b.example",
    ]
    # The post came back to a from b's list, so its owner at b hears of it, and the sender does not.
    bounces = [mail for mail in b.mail() if b"failure notice" in mail]
    assert len(bounces) == 1
    # As under qmail its address begins with the account's name.
    assert b"Delivered-To: abc-abc-l-owner-l=a.example@b.example" in bounces[0]
    assert a.counts()["bounce"] + b.counts()["bounce"] == 1
    assert failed(a) == ["5.4.6"]


async def test_a_bounce_that_loops_ends_at_the_postmaster(sites):
    both = await sites("a")
    (a,) = both.gateways
    a.home(x="&x@a.example\n", s="&s@a.example\n")
    await both.send(a, "x@a.example")
    # The bounce goes round s, and what tells the postmaster of that is the last.
    assert a.counts() == {"smtp": 1, "forward": 2, "bounce": 2}
    (double,) = a.mail()
    assert b"To: postmaster@a.example\n" in double


async def test_a_double_bounce_that_loops_ends_without_another(sites):
    both = await sites("a")
    (a,) = both.gateways
    a.home(**{name: f"&{name}@a.example\n" for name in ("x", "s", "postmaster")})
    await both.send(a, "x@a.example")
    assert a.counts() == {"smtp": 1, "forward": 3, "bounce": 2}
    assert [event.get("reason", "") for event in a.events("message.bounced")] == ["", "", "triple_bounce"]
    assert a.mail() == []


async def test_the_log_in_qmails_words_leads_from_a_loop_to_its_bounce(sites):
    both = await sites("a", more={"a": "journal: {outputs: [{to: log, format: qmail}]}\n"})
    (a,) = both.gateways
    a.home(x="&x@a.example\n")
    await both.send(a, "x@a.example")
    await a.stop()
    lines = (a.base / "log").read_text("ascii").splitlines()
    (bounce,) = [line for line in lines if line.startswith("bounce msg ")]
    born = [line for line in lines if line.startswith("info msg ") and " from <> " in line]
    assert len(born) == 1
    assert bounce.split()[-2:] == born[0].split()[-4:-2]
    results = [line.split(": ")[1] for line in lines if line.startswith("delivery ")]
    assert results == ["success", "failure", "success"]
    assert len([line for line in lines if line.startswith("end msg ")]) == 3
    assert lines[-1] == "status: exiting"
