"""Commands that read and write conf.d: init, check, settings, stages, address, domain add."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.commands import check
from gateway.commands.group import COMMANDS, mailward

PLUGIN = """
import click
from gateway import Plugin, hookimpl

class Extra(Plugin):
    @hookimpl
    def commands(self):
        @click.command()
        def extra():
            "Do something more."
            click.echo("extra was here")
        return [extra]
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(mailward, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


def test_every_command_shows_an_example_in_its_help():
    def leaves(command, path):
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from leaves(child, [*path, name])
        else:
            yield path

    for name in COMMANDS:
        command = mailward.get_command(None, name)
        for path in leaves(command, [name]):
            assert re.search(r"Examples?:\s+mailward", run(*path, "--help")), path


def test_version_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['mailward', 'version']\n"
        "from gateway.commands import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'pydantic', 'yaml', 'rich', 'structlog', 'aiosmtpd'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("mailward 0")
    assert out.endswith("[]\n")


def test_no_configuration_names_the_two_ways_out(tmp_path):
    said = run("check", "--conf", str(tmp_path / "nowhere"), code=1)
    assert "mailward init" in said
    assert "mailward run --demo" in said


def test_the_configuration_is_named_by_the_environment_or_before_the_command(site, monkeypatch):
    assert "no problem" in run("--conf", str(site.conf), "check")
    monkeypatch.setenv("MAILWARD_CONF", str(site.conf))
    assert "no problem" in run("check")


def test_unknown_command_is_wrong_usage():
    assert "No such command" in run("chekc", code=2)


def test_init_writes_what_check_takes_and_overwrites_nothing(tmp_path):
    folder = tmp_path / "site"
    run("init", str(folder))
    texts = {path.name: path.read_text() for path in (folder / "conf.d").iterdir()}
    assert all(text.startswith("#") for text in texts.values())
    assert "no problem" in run("check", "--conf", str(folder / "conf.d"))
    (folder / "conf.d" / "10-gateway.yaml").write_text("mine")
    assert "nothing was written" in run("init", str(folder), code=1)
    assert (folder / "conf.d" / "10-gateway.yaml").read_text() == "mine"


def test_check_prints_every_problem_by_file_and_line(site):
    site.write("50.yaml", "limits:\n  sessons: 5\nvirtual_domain: {}\n")
    site.write("60.yaml", "dot_qmail: {program_time: soon}\n")
    assert "conf.d/50.yaml:2: limits.sessons: unknown key (did you mean sessions?)" in site.mailward(
        "check", code=1
    )
    site.write("50.yaml", "virtual_domain: {}\n")
    lines = site.mailward("check", code=1).splitlines()
    assert len(lines) == 2
    assert any(
        line.startswith("conf.d/50.yaml:1: virtual_domain: unknown section (did you mean virtual_domains?)")
        for line in lines
    )
    assert any(line.startswith("conf.d/60.yaml:1: dot_qmail.program_time: write a time") for line in lines)
    assert {row["kind"] for row in jsonl(site.mailward("check", "--json", code=1))} == {"problem"}


def test_check_says_where_a_plugin_raises(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "broken.py").write_text("x = 1\n1 / 0\n")
    site.write("50.yaml", "plugins: {folders: [plugins]}\n")
    assert "plugins/broken.py:2: ZeroDivisionError: division by zero" in site.mailward("check", code=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_check_by_root_says_whom_a_gateway_could_not_become(site, monkeypatch):
    named, written = (site.conf / "10-gateway.yaml").read_text(), "conf.d/10-gateway.yaml:1: gateway.user: "
    site.write("10-gateway.yaml", named.replace("user: nobody, ", ""))
    said = f"warning: {written}set the user to become: the gateway does not run as root\n"
    assert site.mailward("check").startswith(said)
    for user, wrong in (
        ("nobody-of-that-name", "there is no user nobody-of-that-name"),
        ("root", "root is what"),
    ):
        site.write("10-gateway.yaml", named.replace("user: nobody", f"user: {user}"))
        assert f"{written}{wrong}" in site.mailward("check", code=1)
    site.write("10-gateway.yaml", named)
    monkeypatch.setattr(check, "GROUP", "root")
    assert f"{written}nobody is not in root, so its members may not ask" in site.mailward("check")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_check_by_root_names_the_accounts_that_would_get_nothing(site):
    home = site.home("abc")
    # A home of the gateway's own user is a worker's to deliver to.
    os.chown(home, 65534, -1)
    assert "no warnings" in site.mailward("check")
    for path, uid, said in (
        (home, 0, f"abc: nothing is delivered as uid 0: run chown -R nobody: {home}"),
        (home.parent, 61009, f"abc: give its uid and gid, for its home does not say: {home.parent}: it must"),
    ):
        os.chown(home, 61003, -1)
        os.chown(path, uid, -1)
        assert f"conf.d/30-domains.yaml:7: accounts: mail will wait: {said}" in site.mailward("check")
    site.write("50.yaml", "accounts: {alias: {home: home/xyz, uid: 61003, gid: 61003}}")
    said = f"conf.d/50.yaml:1: accounts: mail will wait: {home.parent}: it must belong to root or uid 61003"
    assert said in site.mailward("check")


def test_check_has_nothing_to_say_against_a_good_site(site):
    assert "no problem, no warnings" in site.mailward("check")


@pytest.mark.parametrize(
    ("yaml", "warning"),
    [
        (
            "locals: {domains: [example.net]}",
            "conf.d/30-domains.yaml:4: example.net is both local and virtual",
        ),
        (
            "virtual_domains: {domains: {example.com: abc}}",
            "conf.d/50.yaml:1: example.com is virtual but not in rcpthosts",
        ),
        (
            "virtual_domains: {domains: {joe@example.org: joe}}",
            "conf.d/50.yaml:1: joe@example.org belongs to joe, an unknown account",
        ),
        (
            "virtual_domains: {domains: {joe@example.org: joe}}\naccounts: {alias: {home: home/abc}}",
            "conf.d/50.yaml:1: joe@example.org belongs to joe, an unknown account",
        ),
        (
            "virtual_domains: {domains: {j@example.org: joe}}\naccounts: {virtual: {joe: {home: home/joe}}}",
            "j@example.org belongs to joe, whose account cannot be looked up: the home ",
        ),
        (
            "virtual_domains: {domains: {j@example.org: j}}\naccounts: {virtual: {j: {home: ., uid: 9}}}",
            "whose home {base} belongs to uid {owner}, not to the account's uid 9",
        ),
        (
            "gateway: {postmaster: me@example.net}",
            "conf.d/50.yaml:1: gateway.postmaster: me@example.net leads",
        ),
        ("listeners: !replace []", "listeners: there is none"),
        (
            "relay_control: {clients: !replace []}\nrcpthosts: {domains: !replace []}",
            "every recipient will be refused",
        ),
    ],
)
def test_check_warns(site, yaml, warning):
    (site.home("xyz") / ".qmail-default").unlink()
    site.home("xyz", sales="./Maildir/\n")
    (site.base / "var").mkdir()
    site.write("50.yaml", yaml)
    said = site.mailward("check")
    assert warning.format(base=site.base, owner=os.geteuid()) in said
    assert said.startswith("warning: ")


def test_check_warns_of_unsafe_homes_and_of_homes_that_take_nothing(site):
    site.home("abc").chmod(0o777)
    (site.home("xyz") / ".qmail-default").unlink()
    said = site.mailward("check")
    assert f"example.org belongs to abc, whose home {site.base}/home/abc is writable for everybody" in said
    assert "conf.d/30-domains.yaml:4: example.net belongs to xyz, in whose home" in said
    kinds = {row["kind"] for row in jsonl(site.mailward("check", "--json"))}
    assert kinds == {"warning"}


def test_settings_show_each_value_with_its_place(site):
    rows = {row["key"]: row for row in jsonl(site.mailward("settings", "--json"))}
    assert rows["virtual_domains.domains.example.net"]["value"] == "xyz"
    assert rows["virtual_domains.domains.example.net"]["from"] == "conf.d/30-domains.yaml:4"
    assert rows["limits.recipients"]["from"] == "default"
    only = [row["key"] for row in jsonl(site.mailward("settings", "rcpthosts", "--json"))]
    assert "rcpthosts.domains[1]" in only
    assert all(key.startswith("rcpthosts.") for key in only)
    assert "did you mean rcpthosts?" in site.mailward("settings", "rcpthost", code=1)


def test_stages_print_the_chain_and_where_plugins_come_from(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "badmailfrom.py").write_text(
        "from gateway import Plugin, hookimpl\n\nclass B(Plugin):\n    @hookimpl\n    def rcpt(self): ...\n"
    )
    site.write("50.yaml", "plugins: {folders: [plugins]}\n")
    rows = {row["stage"]: row for row in jsonl(site.mailward("stages", "--json"))}
    assert rows["relay"]["silence"] == "refuse 553 5.7.1"
    assert [one["stem"] for one in rows["relay"]["plugins"]] == ["relay_control", "rcpthosts"]
    assert rows["rcpt"]["plugins"][0]["origin"] == "site"
    assert rows["rcpt"]["plugins"][0]["file"] == str(site.base / "plugins" / "badmailfrom.py")
    assert rows["rcpt"]["plugins"][1]["origin"] == "bundled"


def test_stages_say_why_a_plugin_stands_where_it_does_and_what_its_policy_is(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "zebra.py").write_text(
        "from gateway import Plugin, hookimpl\n\nclass Z(Plugin):\n    @hookimpl\n    def rcpt(self): ...\n"
    )
    yaml = "plugins: {folders: [plugins]}\nzebra:\n  before: [badmailfrom]\n  dry_run: true\n"
    site.write("50.yaml", f"{yaml}  when: {{authenticated: false}}\n  isolation: thread\n")
    rows = {row["stage"]: row for row in jsonl(site.mailward("stages", "--json"))}
    order = {one["stem"]: one["order"] for one in rows["rcpt"]["plugins"]}
    assert list(order) == ["zebra", "badmailfrom", "recipient_check"]
    assert order["zebra"] == "before badmailfrom (conf.d/50.yaml:3)"
    assert order["badmailfrom"] == "the stage's order"
    said = " ".join(site.mailward("stages").split())
    assert "dry run, when: {authenticated: false}, isolation: thread" in said


def test_address_walks_to_the_line_of_the_qmail_file(site):
    said = {row["stage"]: row for row in jsonl(site.mailward("address", "info@example.org", "--json"))}
    assert said["relay"]["plugin"] == "rcpthosts"
    assert said["relay"]["rule"] == "conf.d/20-relay.yaml:2: example.org"
    assert said["relay"]["silent"] == ["relay_control"]
    assert said["rewrite"]["text"] == "abc-info@example.org"
    assert said["rewrite"]["rule"] == "conf.d/30-domains.yaml:3: example.org -> abc"
    assert said["route"]["text"] == "dot_qmail"
    assert said["account"]["rule"] == "conf.d/30-domains.yaml:7"
    assert said["deliver"]["text"] == f"{site.base}/home/abc/.qmail-info:2: forward ann@example.net"
    assert not (site.base / "var").exists()


def test_address_tells_a_stranger_from_a_client_that_may_relay(site):
    said = site.mailward("address", "joe@elsewhere.example", code=1)
    assert "refused 553 5.7.1" in said
    said = site.mailward("address", "joe@elsewhere.example", "--client", "127.0.0.1")
    assert "relay\trelay_control\tAccept\tconf.d/20-relay.yaml:1" in said
    assert "route\tremote\tremote 127.0.0.1:1\tconf.d/40-remote.yaml:1: (everything else)" in said
    site.write("50.yaml", 'remote: {senders: {ann@example.net: "127.0.0.2:26"}}\n')
    client = ("--client", "127.0.0.1", "--sender", "ann@example.net")
    said = site.mailward("address", "joe@elsewhere.example", *client)
    assert "route\tremote\tremote 127.0.0.2:26\tconf.d/50.yaml:1: ann@example.net" in said
    assert "no IP address" in site.mailward("address", "a@b", "--client", "me", code=2)


def test_address_says_who_refuses_the_unknown_and_the_unwanted(site):
    (site.home("xyz") / ".qmail-default").unlink()
    said = site.mailward("address", "joe@example.net", code=1)
    assert "rcpt\trecipient_check\tReject 5.1.1" in said
    assert "exists\tdot_qmail\tno: 550 5.1.1" in said
    site.write("50.yaml", "badmailfrom: {senders: [spam@example.com]}\n")
    said = site.mailward("address", "info@example.org", "--sender", "spam@example.com", code=1)
    assert "rcpt\tbadmailfrom\tReject" in said


def test_address_shows_what_a_plugin_failed_of(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "odd.py").write_text(
        "from gateway import Plugin, hookimpl\n\nclass Odd(Plugin):\n    @hookimpl\n"
        "    def rcpt(self):\n        raise LookupError('no table')\n"
    )
    site.write("50.yaml", "plugins: {folders: [plugins]}\n")
    said = site.mailward("address", "info@example.org", code=1)
    assert "rcpt\todd\tfailed: LookupError: no table" in said


def test_address_does_not_name_modules_that_are_ours(site):
    (site.base / "home" / "abc" / ".qmail-info").chmod(0o666)
    said = site.mailward("address", "info@example.org", code=1)
    assert "exists\tdot_qmail\tfailed: DeliveryError: a .qmail file is writable for everybody" in said


def test_no_address_is_wrong_usage(site):
    for arguments in ([], [""]):
        assert "ADDRESS" in site.mailward("address", *arguments, code=2)


def test_check_warns_of_a_relay_stage_that_fails_and_of_nothing_that_is_not_so(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "relay_control.py").write_text(
        "from gateway import Plugin, hookimpl\n\nclass Odd(Plugin):\n    @hookimpl\n"
        "    def relay(self):\n        raise LookupError('no table')\n"
    )
    site.write(
        "20-relay.yaml", "rcpthosts: {domains: [example.org, example.net]}\nplugins: {folders: [plugins]}\n"
    )
    said = site.mailward("check")
    assert "relay_control cannot tell whether its mail from outside is taken: LookupError: no table" in said
    assert "not in rcpthosts" not in said


def test_a_plugin_adds_a_command(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "extra.py").write_text(PLUGIN)
    site.write("50.yaml", "plugins: {folders: [plugins]}\n")
    assert run("--conf", str(site.conf), "extra") == "extra was here\n"
    assert "Do something more." in run("--conf", str(site.conf), "--help")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave root")
def test_plugins_are_never_loaded_as_root():
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        _see_who_loads(folder)


def _see_who_loads(folder):
    (folder / "conf.d").mkdir(parents=True)
    (folder / "plugins").mkdir()
    (folder / "conf.d" / "a.yaml").write_text("plugins: {folders: [plugins]}\n")
    (folder / "plugins" / "who.py").write_text(
        "import os\nfrom gateway import Plugin, hookimpl\n"
        "class Who(Plugin):\n    @hookimpl\n    def rcpt(self): ...\n"
        "raise RuntimeError(f'I am {os.geteuid()} {os.getgroups()}')\n"
    )
    command = [sys.executable, "-m", "gateway.commands", "check", "--conf", str(folder / "conf.d")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "RuntimeError: I am 65534" in done.stderr
    assert done.returncode == 1
