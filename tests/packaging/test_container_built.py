"""The container file, built on a Debian of the mirror and run by an OCI runtime: it gets mail, and ends.

No registry is asked: what FROM names is made by mmdebstrap, and is in the builder's store under that name.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import until

CHECKOUT = Path(__file__).parents[2]
FILE = "contrib/container/Containerfile"
PACKAGES = {
    "buildah": "buildah",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "pgrep": "procps",
}
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OURS = """\
rcpthosts: {domains: [example.org]}
virtual_domains: {domains: {example.org: abc}}
accounts: {virtual: {abc: {home: /var/lib/mailward/abc}}}
"""
# The first process has to end the sleeping child of a program that is gone; `seen` says who is there.
QMAIL = """\
|(sleep 1; echo > late) &
|cat /proc/[0-9]*/stat > seen || true
./Maildir/
"""
SEND = """\
import smtplib
with smtplib.SMTP("127.0.0.1", 2525, timeout=50) as client:
    client.sendmail("ann@example.com", "joe@example.org", "Subject: x\\r\\n\\r\\nx\\r\\n")
"""
# Its own addresses, so that no port is another's; and control groups as runc knows them.
ALONE = 'ip link set lo up && umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
UNSHARE = ("--net", "--mount", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, PACKAGES)),
        reason=f"apt install --no-install-recommends {' '.join(PACKAGES.values())}",
    ),
]


def ran(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout.strip()


@pytest.fixture
def buildah(open_folder):
    """The command line of a builder with a store of its own."""
    store = ["buildah", "--storage-driver=vfs", f"--root={open_folder}/store", f"--runroot={open_folder}/run"]
    yield store
    ran(*store, "rm", "--all")
    ran(*store, "rmi", "--all", "--force")


@pytest.fixture
def image(buildah, open_folder):
    """The image of the last commit, by the container file as it is."""
    import_base(buildah, open_folder / "debian.tar")
    context = open_folder / "checkout"
    ran("git", "clone", "--quiet", str(CHECKOUT), str(context))
    shutil.copy(CHECKOUT / FILE, context / FILE)
    how = ["--isolation=chroot", "--pull-never", "--format=docker", f"--file={context}/{FILE}"]
    ran(*buildah, "build", *how, "--tag=mailward", str(context))
    return "localhost/mailward"


def import_base(buildah, archive):
    """Make the image that the container file begins with."""
    (name,) = set(re.findall(r"^FROM (\S+)", (CHECKOUT / FILE).read_text(), re.MULTILINE))
    assert name == "debian:12-slim"
    command = ["mmdebstrap", "--variant=minbase", "bookworm", str(archive), MIRROR]
    if subprocess.run(command, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip(f"no Debian from {MIRROR}")
    container = ran(*buildah, "from", "scratch")
    ran(*buildah, "add", container, str(archive), "/")
    archive.unlink()
    # Where a proxy stands between, pip must know this machine's certificates.
    ran(*buildah, "copy", container, str(CERTIFICATES), "/opt/certificates")
    settings = ["--env=PIP_CERT=/opt/certificates", "--env=PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    ran(*buildah, "config", *settings, container)
    ran(*buildah, "commit", "--rm", container, f"docker.io/library/{name}")


@pytest.fixture
def home(open_folder):
    """The home of an account in the volume, as yet root's."""
    home = open_folder / "state/abc"
    for name in ("tmp", "new", "cur"):
        (home / "Maildir" / name).mkdir(parents=True)
    (home / ".qmail-default").write_text(QMAIL)
    return home


def test_it_is_built_and_serves_and_ends(buildah, image, open_folder, home):
    container = ran(*buildah, "from", "--pull-never", image)
    settings = json.loads(ran(*buildah, "inspect", container))["Docker"]["config"]
    command = settings["Entrypoint"] + settings["Cmd"]
    assert settings["User"] == "mailward"
    once = [*buildah, "run", "--isolation=chroot"]
    user = int(ran(*once, container, "--", "id", "-u"))
    for path in (home.parent, home, *home.rglob("*")):
        os.chown(path, user, user)
    conf = shutil.copytree(CHECKOUT / "contrib/container/conf.d", open_folder / "conf.d")
    (conf / "50-ours.yaml").write_text(OURS)
    volumes = [f"--volume={home.parent}:/var/lib/mailward", f"--volume={conf}:/etc/mailward/conf.d:ro"]

    log = open_folder / "log"
    run = [
        *buildah,
        "run",
        "--isolation=oci",
        "--runtime=runc",
        "--network=host",
        "--hostname=mail.example.org",
    ]
    with log.open("w") as stdout, running([*run, *volumes, container, "--", *command], stdout) as process:
        until(lambda: process.poll() is not None or '"gateway.started"' in log.read_text())
        maildir = home / "Maildir/new"
        within(process, sys.executable, "-c", SEND)
        until(lambda: len(list(maildir.iterdir())) == 1 and (home / "late").exists())
        within(process, sys.executable, "-c", SEND)
        until(lambda: len(list(maildir.iterdir())) == 2)
        assert {one.stat().st_uid for one in maildir.iterdir()} == {user}
        seen = (home / "seen").read_text()
        assert seen.startswith("1 (tini) ")
        assert ") Z " not in seen
        first = within(process, "pgrep", "--exact", "tini")
        there = ["nsenter", f"--target={first}", "--mount", "--pid", "--root", "setpriv", f"--reuid={user}"]
        healthy = within(process, *there, "--clear-groups", *settings["Healthcheck"]["Test"][1:])
        assert "listener\tmx smtp *:2525" in healthy
        within(process, "kill", f"-{settings['StopSignal']}", first)
        assert process.wait(60) == 0
    assert '"gateway.stopped"' in log.read_text()


@contextlib.contextmanager
def running(command, stdout):
    """Run it in namespaces of its own; what is left is killed with them."""
    alone = ["setpriv", "--pdeathsig=KILL", "unshare", *UNSHARE, "sh", "-c", ALONE, "-"]
    with subprocess.Popen([*alone, *command], stdout=stdout) as process:
        try:
            yield process
        finally:
            process.kill()


def within(process, *command):
    """Run a command in the namespaces that `running` made."""
    names = f"/proc/{process.pid}/ns"
    entered = [f"--net={names}/net", f"--mount={names}/mnt", f"--pid={names}/pid_for_children"]
    return ran("nsenter", *entered, *command)
