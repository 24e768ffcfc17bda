"""`mailward passwd`: what it writes is what clients log in with."""

import base64
import os
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.authentication.passwords import Kept, change

MAILWARD = Path(sys.executable).with_name("mailward")
CONF = """\
gateway: {hostname: mail.example.org, state: var}
listeners: [{name: submit, protocol: smtp, address: "127.0.0.1:0", auth: required, auth_without_tls: true}]
auth_file: {}
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.yaml").write_text(CONF)
    return tmp_path


@pytest.fixture
def passwd(site):
    def run(*arguments, typed=""):
        done = subprocess.run(
            [MAILWARD, "passwd", "--conf", site / "conf.d", *arguments],
            input=typed,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def answer(gateway, login, password):
    with smtplib.SMTP("127.0.0.1", gateway.port, timeout=10) as client:
        client.ehlo("client.example")
        secret = base64.b64encode(f"\0{login}\0{password}".encode()).decode()
        return client.docmd("AUTH", f"PLAIN {secret}")[0]


def test_a_login_is_made_changed_locked_and_removed(site, passwd):
    from gateway.services import Clock
    from gateway.testing.fakes import FakeDns
    from gateway.testing.running import Running

    assert passwd("ann", typed="first\n") == (0, f"{site}/passwords: ann has a new password\n")
    assert passwd("joe", "--scram", typed="other\n")[0] == 0
    assert (site / "passwords").stat().st_mode & 0o777 == 0o600
    (site / "conf.d").chmod(0o755)
    listener = CONF.splitlines()[1].replace("listeners: ", "listeners: !replace ")
    with Running(site, f"{listener}\nauth_file: {{}}\n", Clock(), FakeDns()) as gateway:
        assert answer(gateway, "ann", "first") == 235
        assert answer(gateway, "joe", "other") == 235
        assert passwd("ann", typed="second\n")[0] == 0
        assert answer(gateway, "ann", "first") == 535
        assert answer(gateway, "ann", "second") == 235
        assert passwd("--lock", "ann")[0] == 0
        assert answer(gateway, "ann", "second") == 535
        assert [one["reason"] for one in gateway.wait_for("auth.failed", 2)] == ["credentials", "locked"]
        assert passwd("--unlock", "ann")[0] == 0
        assert answer(gateway, "ann", "second") == 235
        assert passwd("--remove", "ann")[0] == 0
        assert answer(gateway, "ann", "second") == 535
        assert answer(gateway, "joe", "other") == 235


@pytest.mark.parametrize(
    ("arguments", "typed", "code", "said"),
    [
        (["a b"], "x\n", 2, "a login has no blank"),
        (["a:b"], "x\n", 2, "a login has no blank"),
        (["ann"], "\n", 2, "1 to 255 characters"),
        (["--lock", "nobody"], "", 1, "there is no login nobody"),
    ],
)
def test_what_cannot_be_is_refused(arguments, typed, code, said, passwd):
    got, printed = passwd(*arguments, typed=typed)
    assert got == code
    assert said in printed


def test_a_line_that_is_none_is_named(site, passwd):
    (site / "passwords").write_text("# logins\nann:secret\n")
    code, printed = passwd("joe", typed="x\n")
    assert (code, printed) == (
        1,
        f"{site}/passwords:2: write `login:hash`, as `mailward passwd LOGIN` does\n",
    )
    assert (site / "passwords").read_text() == "# logins\nann:secret\n"


def test_without_the_section_it_says_what_to_write(site, passwd):
    (site / "conf.d" / "10.yaml").write_text("gateway: {state: var}\n")
    code, printed = passwd("ann", typed="x\n")
    assert code == 1
    assert "auth_file: {file: passwords}" in printed


def test_no_link_that_others_have_laid_is_written_through(tmp_path, monkeypatch):
    """The folder may be the gateway's, and who changes the file root."""
    others = tmp_path / "others"
    others.write_text("precious")
    (tmp_path / f".passwords.{os.getpid()}").symlink_to(others)
    # Whatever stands there is a link by then, but for the file that is already open.
    swapped = []
    exists = Path.exists

    def swap(path):
        for new in tmp_path.glob(".passwords.*"):
            new.unlink()
            new.symlink_to(others)
            swapped.append(new)
        return exists(path)

    others.chmod(0o640)
    before = others.stat()
    (tmp_path / "passwords").write_text("")
    (tmp_path / "passwords").chmod(0o606)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", swap)
        change(tmp_path / "passwords", "ann", lambda _: Kept("ann", "$argon2id$x"))
    after = others.stat()
    assert swapped
    assert others.read_text() == "precious"
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime_ns,
    )
