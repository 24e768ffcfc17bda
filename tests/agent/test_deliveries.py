"""What a real gateway, started by root, does for the accounts of a machine."""

import os
import smtplib


def test_files_belong_to_whom_they_are_for(site):
    for name in (site.ann, site.joe):
        new = site.maildir(name)
        assert site.fate(name)["event"] == "delivery.delivered"
        (found,) = new.iterdir()
        status = found.stat()
        assert (status.st_uid, status.st_gid) == site.users[name][2:4]
        assert status.st_mode & 0o777 == 0o600
        found.unlink()


def test_nothing_of_the_gateway_runs_as_root_but_the_agent(site):
    everybody = site.processes(site.users[site.gateway].pw_uid)
    assert any("gateway.workers.child" in one for one in everybody.values())
    assert (site.state / "queue").stat().st_uid == site.users[site.gateway].pw_uid


#: What a program of an account sees of the world, one line each.
LOOK = """\
|(id -u; id -G; umask; pwd; env | sed 's/=.*//' | sort | tr '\\n' ' '; echo;\
 ls /proc/self/fd | tr '\\n' ' '; echo;\
 cat {key} {state}/queue/shard-0/* {state}/secret {other}/secret /proc/$PPID/environ | wc -c) > look 2>&1
"""


def test_a_program_reaches_nothing_but_its_own(site):
    (site.home[site.joe] / "secret").write_text("secret")
    (site.home[site.joe] / "secret").chmod(0o644)
    site.qmail(site.ann, LOOK.format(key=site.base / "mx.pem", state=site.state, other=site.home[site.joe]))
    assert site.fate(site.ann)["event"] == "delivery.delivered"
    said = (site.home[site.ann] / "look").read_text().splitlines()
    account = site.users[site.ann]
    assert said[:4] == [str(account.pw_uid), str(account.pw_gid), "0077", account.pw_dir]
    assert "SECRET_OF_ROOT" not in said[4]
    assert "LOCAL" in said[4]
    # 3 is what `ls` itself has open.
    assert said[5].split() == ["0", "1", "2", "3"]
    denied = "\n".join(said[6:-1])
    for path in (site.base / "mx.pem", site.state, site.home[site.joe] / "secret"):
        assert f"{path}" in denied
    assert denied.count("Permission denied") >= 4
    site.qmail(site.ann, "./Maildir/\n")


def test_large_bodies_arrive_whole(site):
    new = site.maildir(site.joe)
    text = "".join(f"line {number} of a body that is no small one\r\n" for number in range(20_000))
    assert site.fate(site.joe, text=text)["event"] == "delivery.delivered"
    (found,) = new.iterdir()
    assert found.read_text().partition("\n\n")[2] == text.replace("\r\n", "\n")
    found.unlink()


def test_forwards_of_a_child_go_on(site):
    new = site.maildir(site.joe)
    site.qmail(site.ann, f"&{site.joe}@example.org\n", ".qmail-on")
    assert site.fate(f"{site.ann}-on")["event"] == "delivery.delivered"
    (found,) = site.until(lambda: list(new.iterdir()))
    assert f"Delivered-To: {site.ann}-on@example.org" in found.read_text()
    found.unlink()


def test_an_address_that_nobody_has_is_refused_at_the_door(site):
    with smtplib.SMTP("127.0.0.1", site.port, "client.example") as client:
        client.ehlo()
        client.docmd("MAIL FROM:<a@example.com>")
        assert client.docmd(f"RCPT TO:<{site.ann}-nobody@example.org>")[0] == 550
        assert client.docmd(f"RCPT TO:<{site.ann}@example.org>")[0] == 250


def test_whoever_hangs_up_ends_the_delivery(site):
    site.qmail(site.joe, "|echo $$ > pid; exec sleep 600\n", ".qmail-slow")
    site.send(f"{site.joe}-slow")
    path = site.home[site.joe] / "pid"
    pid = int(site.until(lambda: path.is_file() and path.read_text()))
    workers = [
        one
        for one, line in site.processes(site.users[site.gateway].pw_uid).items()
        if "gateway.workers.child" in line
    ]
    site.qmail(site.joe, "|exit 0\n", ".qmail-slow")
    for one in workers:
        os.kill(one, 9)
    site.until(lambda: pid not in site.processes(site.users[site.joe].pw_uid))
    assert site.fate(site.ann)["event"] == "delivery.delivered"
