"""The package on a machine that a real systemd runs: start, mail, reload, sockets, death and stop."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from machine import CannotBoot, booted, until

CHECKOUT = Path(__file__).parents[2]
UNITS = CHECKOUT / "contrib" / "systemd"
CONF = "/etc/mailward/conf.d/50-ours.yaml"
USERS = """\
gateway: {hostname: mail.example.org}
locals: {domains: [mail.example.org]}
rcpthosts: {domains: [mail.example.org]}
"""
VIRTUAL = """\
gateway: {hostname: mail.example.org}
listeners: !replace [{name: mx, protocol: smtp, address: "*:25"}]
rcpthosts: {domains: [mail.example.org]}
virtual_domains: {domains: {mail.example.org: abc}}
accounts: {virtual: {abc: {home: /var/lib/mailward/abc}}}
"""
LOGINS = """\
gateway: {hostname: mail.example.org}
listeners: !replace
  - {name: mx, protocol: smtp, address: "127.0.0.1:25", auth: optional, auth_without_tls: true}
auth_pam: {}
"""
LOGIN = """\
import smtplib
with smtplib.SMTP("127.0.0.1", 25, timeout=50) as client:
    client.ehlo()
    for password in "wrong", "right":
        client.putcmd("AUTH PLAIN", smtplib.encode_base64(b"\\0joe\\0" + password.encode(), eol=""))
        print(client.getreply()[0])
"""
JOE, ABC = "/home/joe", "/var/lib/mailward/abc"
# `systemctl start` waits for READY (Type=notify).
AGENT, ALONE, SOCKET = "mailward.service", "mailward-unprivileged.service", "mailward-unprivileged.socket"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A machine with the package of the last commit, and with two homes."""
    try:
        with booted() as machine:
            command = [CHECKOUT / "contrib/debian/build", tmp_path_factory.mktemp("package")]
            built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            shutil.copy(built.stdout.strip(), machine.path("/tmp/mailward.deb"))
            machine("dpkg", "--install", "/tmp/mailward.deb")
            machine("useradd", "--create-home", "joe")
            for user, home in (("joe", JOE), ("mailward", ABC)):
                new = [f"{home}/Maildir{part}" for part in ("", "/tmp", "/new", "/cur")]
                machine("install", "-d", f"--owner={user}", f"--group={user}", home, *new)
            for home, file in ((JOE, ".qmail"), (ABC, ".qmail-default")):
                machine.path(f"{home}/{file}").write_text(
                    "./Maildir/\n|cat > last; cat /proc/self/status > held\n"
                )
            yield machine
    except CannotBoot as why:
        pytest.skip(str(why))


@pytest.fixture
def machine(installed):
    yield installed
    installed("systemctl", "stop", AGENT, SOCKET, ALONE)


@pytest.fixture(params=["EPERM", "kill"])
def filtered(request, machine):
    """With `kill`, a call that the filter of a unit refuses is the end of who made it: so none is refused."""
    folders = [machine.path(f"/run/systemd/system/{unit}.d") for unit in (AGENT, ALONE)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "filter.conf").write_text(f"[Service]\nSystemCallErrorNumber={request.param}\n")
    machine("systemctl", "daemon-reload")
    assert (machine.shown(AGENT, "SystemCallErrorNumber") == "1") == (request.param == "EPERM")
    yield machine
    for folder in folders:
        shutil.rmtree(folder)
    machine("systemctl", "daemon-reload")


def mails(machine, home):
    return len(list(machine.path(f"{home}/Maildir/new").iterdir()))


def held(status):
    """Give the lines of /proc/PID/status that say what a process may."""
    found = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    return {key: found[key] for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}


def processes(machine, unit):
    """Give (uid, what it may) of the processes of a unit."""
    pids = machine.path(f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs").read_text().split()
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return [(int(re.search(r"^Uid:\t(\d+)", text, re.MULTILINE)[1]), held(text)) for text in texts]


def test_users_get_their_mail_and_the_service_is_started_reloaded_and_stopped(filtered):
    machine = filtered
    machine.path(CONF).write_text(USERS)
    machine("systemctl", "start", AGENT)
    before = mails(machine, JOE)
    machine.send("joe@mail.example.org")
    joe = ["setpriv", "--reuid=joe", "--regid=joe", "--clear-groups"]
    machine(*joe, "/usr/lib/mailward/qmail/sendmail", "joe@mail.example.org", input="Subject: by hand\n\nx\n")
    until(lambda: mails(machine, JOE) == before + 2)
    uid = int(machine("id", "-u", "joe"))
    assert {one.stat().st_uid for one in machine.path(f"{JOE}/Maildir/new").iterdir()} == {uid}

    found = processes(machine, AGENT)
    gateway = int(machine("id", "-u", "mailward"))
    assert {one for one, _ in found} - {uid} == {0, gateway}
    assert [one for one, _ in found].count(0) == 1
    until(machine.path(f"{JOE}/held").exists)
    for one, may in (*found, (uid, held(machine.path(f"{JOE}/held").read_text()))):
        bound = "00000000000004e0"  # CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE
        effective = bound if one == 0 else "0" * 16
        assert may == {"CapEff": effective, "CapBnd": bound, "NoNewPrivs": "1", "Seccomp": "2"}

    machine("systemctl", "reload", AGENT)
    until(lambda: "configuration 2 from" in machine("mailward", "status"))
    assert machine.state(AGENT) == "active"
    machine("systemctl", "stop", AGENT)
    ended = [machine.shown(AGENT, one) for one in ("Result", "ExecMainStatus", "NRestarts", "ActiveState")]
    assert ended == ["success", "0", "0", "inactive"]


def test_a_connection_to_systemds_socket_starts_it_and_waits_while_it_is_away(filtered):
    machine = filtered
    machine.path(CONF).write_text(VIRTUAL)
    machine("systemctl", "start", SOCKET)
    assert machine.state(ALONE) == "inactive"
    before = mails(machine, ABC)
    machine.send("joe@mail.example.org")  # its workers serve before they are all there, and READY is said
    until(lambda: machine.state(ALONE) == "active")
    until(lambda: mails(machine, ABC) == before + 1)
    until(machine.path(f"{ABC}/held").exists)

    gateway = int(machine("id", "-u", "mailward"))
    nothing = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    found = processes(machine, ALONE)
    assert all(one == (gateway, nothing) for one in found), found
    assert held(machine.path(f"{ABC}/held").read_text()) == nothing

    machine("systemctl", "reload", ALONE)
    until(lambda: "configuration 2 from" in machine("mailward", "status"))
    machine("systemctl", "stop", ALONE)
    assert machine.shown(ALONE, "Result") == "success"
    machine.send("joe@mail.example.org", to="::1")
    until(lambda: mails(machine, ABC) == before + 2)
    assert machine.shown(ALONE, "NRestarts") == "0"


def test_root_asks_pam_within_the_bounds_of_the_unit(filtered):
    machine = filtered
    machine.path("/etc/pam.d/mailward").write_text("@include common-auth\n@include common-account\n")
    machine("chpasswd", input="joe:right\n")
    machine.path(CONF).write_text(LOGINS)
    machine("systemctl", "start", AGENT)
    assert machine("/usr/bin/python3", "-I", "-c", LOGIN).split() == ["535", "235"]


def test_each_service_takes_the_ports_of_the_other(machine):
    machine.path(CONF).write_text(VIRTUAL)
    machine("chown", "-R", "joe:joe", ABC)  # the gateway's own user is nobody whom the agent becomes
    for one, other in ((AGENT, ALONE), (ALONE, AGENT), (AGENT, ALONE)):
        machine("systemctl", "start", one)
        assert [machine.state(unit) for unit in (one, other)] == ["active", "inactive"]
        assert machine.shown(one, "NRestarts") == "0"
    machine("chown", "-R", "mailward:mailward", ABC)


def test_it_is_started_again_when_it_dies_and_mail_goes_on(machine):
    machine.path(CONF).write_text(USERS)
    machine("systemctl", "start", AGENT)
    first = set(machine.path(f"/sys/fs/cgroup/system.slice/{AGENT}/cgroup.procs").read_text().split())
    machine("systemctl", "kill", "--kill-whom=main", "--signal=KILL", AGENT)
    until(lambda: machine.shown(AGENT, "NRestarts") == "1" and machine.state(AGENT) == "active")
    assert not first & set(
        machine.path(f"/sys/fs/cgroup/system.slice/{AGENT}/cgroup.procs").read_text().split()
    )
    before = mails(machine, JOE)
    machine.send("joe@mail.example.org")
    until(lambda: mails(machine, JOE) == before + 1)


@pytest.mark.parametrize("unit", [AGENT, ALONE])
def test_no_line_is_lost_on_the_way_to_the_journal(machine, unit):
    text = (UNITS / unit).read_text()
    for key, value in (("Type", "oneshot"), ("ExecStart", "/usr/bin/seq 200000"), ("Restart", "no")):
        text = re.sub(rf"^{key}=.*", f"{key}={value}", text, flags=re.MULTILINE)
    text = re.sub(r"^(Conflicts|Requires|After|SyslogIdentifier)=.*", "", text, flags=re.MULTILINE)
    chatty = f"chatty-{unit}"
    machine.path(f"/run/systemd/system/{chatty}").write_text(text)
    machine("systemctl", "daemon-reload")
    machine("systemctl", "start", chatty)
    machine("journalctl", "--sync")
    counted = f"journalctl --quiet --unit={chatty} --identifier=seq --output=cat | wc -l"
    assert int(machine("sh", "-c", counted)) == 200_000
