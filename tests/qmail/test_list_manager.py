"""What a list manager written for qmail, such as ezmlm-idx, needs of its host (ezmlm specification 11)."""

import os
import subprocess
import sys
import time

import programs
import pytest

#: Reads the message twice from a rewound descriptor 0, then submits it from the prefix by a relative path.
MANAGER = """#!{python} -IS
import os
os.lseek(0, 0, os.SEEK_SET)
first = os.read(0, 100000)
os.lseek(0, 0, os.SEEK_SET)
assert os.read(0, 100000) == first
names = ("SENDER", "RECIPIENT", "LOCAL", "EXT", "HOST", "USER", "HOME", "DTLINE", "RPLINE", "DEFAULT")
with open("seen", "w") as file:
    file.write(repr({{name: os.environ.get(name) for name in names}}) + "\\n" + os.getcwd())
(m, mw), (e, ew) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.chdir({prefix!r})
    os.dup2(m, 0)
    os.dup2(e, 1)
    os.closerange(3, 64)
    os.execv("bin/qmail-queue", ["bin/qmail-queue"])
os.close(m)
os.close(e)
os.write(mw, b"Mailing-List: x\\n" + first)
os.close(mw)
with open(ew, "wb") as envelope:
    envelope.write(b"Flist-return-1-@lists.example-@[]\\0")
    envelope.write(b"".join(b"Tmember%d@h%d.example\\0" % (i, i % 50) for i in range({count})) + b"\\0")
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
COUNT = 100_000


@pytest.fixture
def site(base):
    """A gateway with the account `posts`, whose dot file is a link into the list's own closed folder."""
    home, folder = base / "home", base / "home" / "lists"
    folder.mkdir(parents=True)
    prefix = base / "qmail"
    install = [sys.executable, programs.PROGRAMS / "install", prefix / "bin", "--state", base / "state"]
    subprocess.run(install, check=True)
    manager = folder / "manager"
    manager.write_text(MANAGER.format(python=sys.executable, prefix=str(prefix), count=COUNT))
    manager.chmod(0o755)
    (folder / "editor").write_text("|lists/manager\n")
    (home / ".qmail-all").symlink_to(folder / "editor")
    folder.chmod(0o700)
    for path in (home, folder, *folder.iterdir()):
        os.chown(path, programs.OWNER, -1)
    conf = {
        "virtual_domains": {"domains": {"lists.example": "posts"}},
        "accounts": {"virtual": {"posts": {"home": str(home)}}},
    }
    with programs.Running(base, conf) as gateway:
        yield gateway, prefix, home


def test_a_post_goes_to_a_hundred_thousand_members_in_one_submission(site):
    gateway, prefix, home = site
    sendmail = [prefix / "bin" / "sendmail", "-f", "ann@example.org", "All@lists.example"]
    subprocess.run(sendmail, input=b"Subject: post\n\nb\n", env={"PATH": "/bin"}, check=True)
    end = time.monotonic() + 20
    while not (posts := [e for e in gateway.told("message.accepted") if e["recipients"] == COUNT]):
        assert time.monotonic() < end, [
            one["text"] for one in gateway.told("delivery.deferred", "delivery.failed")
        ]
        time.sleep(0.1)
    assert posts[0]["sender"] == "list-return-1-@lists.example-@[]"
    seen, _, where = (home / "seen").read_text().partition("\n")
    assert where == str(home)
    assert eval(seen) == {
        "SENDER": "ann@example.org",
        "RECIPIENT": "posts-All@lists.example",
        "LOCAL": "posts-All",
        "EXT": "All",
        "HOST": "lists.example",
        "USER": "posts",
        "HOME": str(home),
        "DTLINE": "Delivered-To: posts-All@lists.example\n",
        "RPLINE": "Return-Path: <ann@example.org>\n",
        "DEFAULT": None,
    }
    while not (delivered := gateway.told("delivery.delivered")):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert delivered[0]["recipient"] == "All@lists.example"
