"""`mailward plugin`: new, test, list, show."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from gateway.commands.group import mailward

STAMP = '''"""stamp: puts a word into every message, and refuses some senders.

    stamp: {word: hello}
"""
from pydantic import SecretStr
from gateway import Message, Plugin, Reject, Section, Transaction, hookimpl

class Settings(Section):
    """What is put in."""

    #: The word.
    word: str = "hello"
    #: Nobody sees it.
    password: SecretStr | None = None

class Stamp(Plugin[Settings]):
    @hookimpl
    def mail(self, transaction: Transaction) -> Reject | None:
        if transaction.sender.startswith("bad"):
            return Reject("5.7.1", "no", reason="bad")
        if transaction.sender.startswith("boom"):
            raise RuntimeError("boom")

    @hookimpl
    def incoming(self, message: Message) -> Message:
        message.prepend("X-Stamp", self.settings.word)
        return message
'''


@pytest.fixture
def stamp(site):
    (site.base / "plugins").mkdir(mode=0o755)
    path = site.base / "plugins" / "stamp.py"
    path.write_text(STAMP)
    path.chmod(0o644)
    site.write(
        "50-plugins.yaml",
        "plugins: {folders: [plugins]}\nstamp: {word: well, password: secret, dry_run: true}\n",
    )
    return path


def invoke(*arguments, code=0):
    result = CliRunner().invoke(mailward, [str(one) for one in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.mark.timeout(180)  # a pytest of its own
def test_what_new_writes_passes_at_once(tmp_path):
    old = os.umask(0o002)
    try:
        said = invoke("plugin", "new", "no_fridays", "--into", tmp_path / "site")
    finally:
        os.umask(old)
    names = {path.name for path in (tmp_path / "site").iterdir()}
    assert names == {"no_fridays.py", "no_fridays.yaml", "test_no_fridays.py", "no_fridays.md"}
    assert f"python -m pytest {tmp_path}/site/test_no_fridays.py" in said
    # Away from this project's own settings of pytest, as at a site.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_no_fridays.py"],
        cwd=tmp_path / "site",
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "warning" not in done.stdout


def test_what_new_writes_is_clean_and_loads(site):
    invoke("plugin", "new", "no_fridays", "--into", site.base / "plugins")
    (site.base / "plugins").chmod(0o755)
    settings = (site.base / "plugins" / "no_fridays.yaml").read_text()
    site.write("50-plugins.yaml", f"plugins: {{folders: [plugins]}}\n{settings}")
    (row,) = json.loads("[" + site.mailward("plugin", "show", "no_fridays", "--json") + "]")
    assert row["stages"] == ["mail"]
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--isolated",
        "--line-length=110",
        "--select=E,F,I,B,UP",
    ]
    subprocess.run([*ruff, site.base / "plugins"], check=True, capture_output=True)


def test_new_overwrites_nothing_and_takes_no_odd_name(tmp_path):
    (tmp_path / "one.md").write_text("mine")
    assert "one.md: there already; nothing was written" in invoke(
        "plugin", "new", "one", "--into", tmp_path, code=1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["one.md"]
    for name in ("No-Fridays", "../x", "test_x", "1x"):
        assert "a plugin's name is" in invoke("plugin", "new", name, "--into", tmp_path, code=2)


def test_list_says_what_runs_and_why(site, stamp):
    site.write("60-off.yaml", "badmailfrom: {enabled: false}\n")
    rows = {
        row["plugin"]: row for row in map(json.loads, site.mailward("plugin", "list", "--json").splitlines())
    }
    assert rows["stamp"] == {
        "plugin": "stamp", "origin": "site", "runs": "yes", "why": "its file is present", "file": str(stamp),
    }  # fmt: skip
    assert (rows["rcpthosts"]["runs"], rows["rcpthosts"]["why"]) == ("yes", "core")
    assert (rows["badmailfrom"]["runs"], rows["badmailfrom"]["why"]) == (
        "no",
        "conf.d/60-off.yaml:1: enabled: false",
    )
    assert (rows["aliases"]["runs"], rows["aliases"]["why"]) == ("no", "has no section")
    assert "stamp\tsite\tyes\tits file is present" in site.mailward("plugin", "list")


@pytest.mark.usefixtures("stamp")
def test_show_tells_all_of_a_plugin(site):
    row = json.loads(site.mailward("plugin", "show", "stamp", "--json"))
    assert row["about"].startswith("stamp: puts a word into every message")
    assert row["stages"] == ["mail", "incoming"]
    settings = {one["key"]: one for one in row["settings"]}
    assert settings["stamp.word"] == {
        "key": "stamp.word",
        "value": "well",
        "type": "text",
        "comment": "The word.",
        "from": "conf.d/50-plugins.yaml:2",
    }
    assert settings["stamp.on_error"]["from"] == "default"
    said = site.mailward("plugin", "show", "stamp")
    assert "stamp.word: well    # text; from conf.d/50-plugins.yaml:2\n    The word." in said
    assert "secret" not in said.replace("# secret;", "")
    assert "no plugin stmp is here (did you mean stamp?)" in site.mailward("plugin", "show", "stmp", code=1)
    assert "aliases does not run here: has no section" in site.mailward("plugin", "show", "aliases", code=1)


@pytest.mark.usefixtures("stamp")
def test_test_asks_every_stage_and_shows_the_edit(site, tmp_path):
    (tmp_path / "one.eml").write_bytes(b"Subject: hello\r\n\r\nhello\r\n")
    arguments = ("plugin", "test", "stamp", "--eml", str(tmp_path / "one.eml"), "--sender", "bad@example.com")
    rows = [json.loads(line) for line in site.mailward(*arguments, "--json").splitlines()]
    assert [(row["stage"], row["edit"]) for row in rows] == [
        ("mail", []),
        ("incoming", ["incoming: +X-Stamp: well"]),
    ]
    assert rows[0]["says"] == "Reject 5.7.1 no (bad)"
    said = site.mailward(*arguments).splitlines()
    assert said == [
        "mail\t\tReject 5.7.1 no (bad)",
        "incoming\t\tedits the message",
        "incoming: +X-Stamp: well",
    ]


def test_test_is_about_this_client_and_these_recipients(site):
    arguments = (
        "--client",
        "127.0.0.1",
        "--recipient",
        "a@example.org",
        "--recipient",
        "b@elsewhere.example",
    )
    said = site.mailward("plugin", "test", "relay_control", *arguments).splitlines()
    assert [line.split("\t")[1:] for line in said if line.startswith("relay\t")] == [
        ["a@example.org", "Accept by conf.d/20-relay.yaml:1"],
        ["b@elsewhere.example", "Accept by conf.d/20-relay.yaml:1"],
    ]
    stranger = site.mailward("plugin", "test", "relay_control", "--recipient", "b@elsewhere.example")
    assert "relay\tb@elsewhere.example\tnothing" in stranger
    assert "deliver\t\tnot asked: it would reach" in site.mailward("plugin", "test", "dot_qmail")


@pytest.mark.usefixtures("stamp")
def test_test_fails_with_the_plugin(site):
    site.write("60-skip.yaml", "stamp: {on_error: skip}\n")
    said = site.mailward("plugin", "test", "stamp", "--sender", "boom@example.com", code=1)
    assert "mail\t\tfailed: RuntimeError: boom" in said
    assert "should be an IP address" in site.mailward("plugin", "test", "stamp", "--client", "x", code=2)
