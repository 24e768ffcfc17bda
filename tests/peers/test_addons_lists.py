"""List managers behind the gateway: mlmmj from Debian; a wrapper with an include list, as majordomo has."""

import re
import subprocess

import pytest
from peer import OWNER, eventually, program


@pytest.fixture
def home(host):
    return host.folder / "home" / "abc"


def run(*command, **more):
    """Run a program as the list's owner."""
    subprocess.run(command, check=True, timeout=20, user=OWNER, group=OWNER, extra_groups=[], **more)


@pytest.fixture
def team(host, home):
    """Make the list team@example.org as mlmmj's README.qmail says; mlmmj sends by SMTP to the gateway."""
    (home / "lists").mkdir(exist_ok=True)
    host.own(home / "lists")
    make = ["mlmmj-make-ml", "-L", "team", "-s", home / "lists"]
    made = home / "lists" / "team"
    if not made.exists():
        run(*make, input=b"example.org\nowner@example.org\n\n", stdout=subprocess.DEVNULL)
    for name, value in {"delimiter": "-", "smtpport": host.port, "customheaders": "X-List: team"}.items():
        (made / "control" / name).write_text(f"{value}\n")
    line = f"|{program('mlmmj-receive')} -F -L {made}\n"
    host.home("abc", **{"default": "./Maildir/\n", "team": line, "team-default": line})
    return made


def members(team):
    """Give who is subscribed."""
    return {line for path in (team / "subscribers.d").iterdir() for line in path.read_text().split()}


def confirm(host, kind):
    """Answer the question that mlmmj has sent to ann."""
    (question,) = host.received(1, having=f"team-{kind}-", account="xyz")
    address = re.search(rf"team-{kind}-[0-9a-z]+-ann=example\.net@example\.org", question.decode())[0]
    host.send(address, "Re: confirm")


@pytest.mark.peer("mlmmj")
def test_a_member_of_mlmmj_subscribes_posts_and_leaves(host, team):
    host.send("team-subscribe@example.org", "subscribe")
    confirm(host, "confsub")
    eventually(lambda: members(team) == {"ann@example.net"})
    host.received(1, having="Welcome_to_team", account="xyz")

    host.send("team@example.org", "first post", sender="bob@elsewhere.example", text="Dear all\n")
    (post,) = host.received(1, having="\nX-List: team\n", account="xyz")
    assert post.startswith(b"Return-Path: <team-bounces-1-ann=example.net@example.org>\n")
    assert b"\nFrom: bob@elsewhere.example\n" in post
    assert b"\nDear all\n" in post

    host.send("team-unsubscribe@example.org", "unsubscribe")
    confirm(host, "confunsub")
    eventually(lambda: members(team) == set())
    host.idle()


@pytest.mark.peer("mlmmj")
def test_mlmmj_hears_of_members_who_are_gone(host, team):
    host.home("xyz", gone="|echo no longer here; exit 100\n")
    run(program("mlmmj-sub"), "-L", team, "-a", "gone@example.net", "-f")
    host.send("team@example.org", "second post", sender="bob@elsewhere.example")
    bounced = team / "bounce" / "gone=example.net"
    eventually(bounced.exists)
    host.idle()
    assert b"no longer here" in (team / "bounce" / "gone=example.net.lastmsg").read_bytes()


@pytest.fixture
def major(host, home):
    """Make the list major@example.org: wrapper and resend, an alias with the members, an owner."""
    for name in ("wrapper", "resend"):
        host.take(name, name)
    members = home / "major.members"
    members.write_text("ann@example.net\n")
    host.configure("40-aliases.yaml", f'aliases: {{names: {{major-outgoing: [":include:{members}"]}}}}\n')
    host.mailward("reload")
    host.home(
        "abc",
        default="./Maildir/\n",
        major="|preline ./wrapper resend -l major -h example.org major-outgoing\n",
    )
    return members


@pytest.mark.usefixtures("major")
def test_a_post_goes_through_the_wrapper_to_the_include_list(host):
    host.send("major@example.org", "major 1", sender="bob@elsewhere.example")
    (post,) = host.received(1, having="Subject: major 1\n", account="xyz")
    assert post.startswith(b"Return-Path: <owner-major@example.org>\nDelivered-To: xyz-ann@example.net\n")
    assert b"\nSender: owner-major@example.org\n" in post
    assert b"\nDelivered-To: abc-major@example.org\n" in post


def test_a_change_of_the_include_list_counts_at_once(host, major):
    major.write_text("ann@example.net\nsue@example.net\n")
    host.send("major@example.org", "major 2", sender="bob@elsewhere.example")
    posts = host.received(2, having="Subject: major 2\n", account="xyz")
    delivered = {re.search(rb"\nDelivered-To: xyz-(\w+)@", post)[1] for post in posts}
    assert delivered == {b"ann", b"sue"}


def test_members_who_are_gone_bounce_to_the_lists_owner(host, major):
    host.home("xyz", left="|exit 100\n")
    major.write_text("left@example.net\n")
    host.send("major@example.org", "major 3", sender="bob@elsewhere.example")
    (bounce,) = host.received(1, having="Subject: major 3\n")
    assert b"\nDelivered-To: abc-owner-major@example.org\n" in bounce
    assert b"\nSubject: failure notice\n" in bounce


def test_a_post_that_comes_back_to_its_list_is_stopped(host, major):
    major.write_text("major@example.org\n")
    host.send("major@example.org", "major 4", sender="bob@elsewhere.example")
    (bounce,) = host.received(1, having="Subject: major 4\n")
    assert b"this message is looping" in bounce
    host.idle()
