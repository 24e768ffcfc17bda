"""Homes that would defer all mail are warned of before it comes: by root, and by a gateway without rights."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.mark.skipif(not ROOT, reason="only root makes a home that is root's")
def test_a_home_that_root_has_made_and_kept_is_warned_of_when_it_gets_a_domain(site):
    home = site.home("shop", default="./Maildir/\n")
    os.chown(home, 0, 0)
    said = site.mailward("domain", "add", "shop.example", "shop", "--home", str(home))
    written = "conf.d/domain-shop.example.yaml:"
    remedy = f"run chown -R nobody: {home}"
    assert (
        f"warning: {written}9: accounts: mail will wait: shop: nothing is delivered as uid 0: {remedy}"
        in said
    )
    assert remedy in site.mailward("check")
    subprocess.run(["chown", "-R", "nobody:", home], check=True)
    assert "no warnings" in site.mailward("check")


def test_a_qmail_file_that_everybody_may_write_is_named(site):
    file = site.base / "home" / "abc" / ".qmail-info"
    file.chmod(0o666)
    said = f"warning: conf.d/30-domains.yaml:7: accounts: mail will wait: {file} is writable for everybody"
    assert said in site.mailward("check")
    file.chmod(0o644)
    assert "no warnings" in site.mailward("check")


def test_a_doubt_about_the_gateways_own_homes_is_no_yes(site):
    own = pwd.getpwuid(NOBODY if ROOT else os.geteuid())
    site.write("50.yaml", f"gateway: {{user: {own.pw_name}}}\n")
    file = site.base / "home" / "xyz" / ".qmail-default"
    os.chown(file.parent, own.pw_uid, -1)
    file.write_bytes(b"# " * 3_000_000)
    doubt = "whether its mail is taken cannot be told: DeliveryError: a .qmail file is too large"
    said = f"warning: conf.d/30-domains.yaml:4: example.net belongs to xyz, and {doubt}"
    assert said in site.mailward("check")


@pytest.mark.skipif(not ROOT, reason="only root makes a home that is another's")
def test_a_gateway_without_rights_is_told_of_homes_that_it_may_not_write():
    with tempfile.TemporaryDirectory(prefix="mailward-homes-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        (base / "conf.d").mkdir()
        (base / "conf.d" / "10.yaml").write_text(
            "gateway: {hostname: mail.example.org, state: var}\n"
            "accounts: {virtual: {own: {home: own}, other: {home: other}}}\n"
        )
        for name, uid in (("own", NOBODY), ("other", 61003)):
            (base / name).mkdir()
            os.chown(base / name, uid, -1)
        command = [sys.executable, "-m", "gateway.commands", "check", "--conf", base / "conf.d"]
        done = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=True
        )
        waits = [line for line in done.stdout.splitlines() if "mail will wait" in line]
        told = f"other: {base}/other belongs to uid 61003, and uid {NOBODY} may not write it"
        assert [line.endswith(f", unless root starts the gateway: {told}") for line in waits] == [True]


def test_a_sites_own_accounts_plugin_may_have_settings_that_only_it_knows(site):
    (site.base / "plugins").mkdir()
    (site.base / "plugins" / "accounts.py").write_text(
        "from gateway import Plugin, Section, hookimpl\n\nclass Settings(Section):\n    table: str\n\n"
        "class Own(Plugin[Settings]):\n    @hookimpl\n    def account(self):\n        return None\n"
    )
    site.write("30-domains.yaml", "plugins: {folders: [plugins]}\naccounts: {table: users}\n")
    said = site.mailward("check")
    assert ("conf.d/30-domains.yaml:2: accounts.table: unknown key" in said) == ROOT
    assert ("root starts no such gateway" in said) == ROOT


@pytest.mark.skipif(not ROOT, reason="only root starts a gateway whose own homes run no program")
def test_a_program_in_a_home_of_the_gateways_own_is_named():
    with tempfile.TemporaryDirectory(prefix="mailward-homes-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        (base / "conf.d").mkdir()
        (base / "conf.d" / "10.yaml").write_text(
            "gateway: {hostname: mail.example.org, state: var, user: nobody}\n"
            "accounts: {virtual: {own: {home: own}, other: {home: other}}}\n"
        )
        (base / "elsewhere").write_text("|true\n")
        for name, uid in (("own", NOBODY), ("other", 61003)):
            home = base / name
            home.mkdir()
            (home / ".qmail-default").write_text("./Maildir/\n|true\n")
            (home / ".qmail-none").write_text("# |none\n")
            (home / ".qmail-link").symlink_to(base / "elsewhere")
            os.mkfifo(home / ".qmail-pipe")
            subprocess.run(["chown", "-R", "--no-dereference", str(uid), home], check=True)
        command = [sys.executable, "-m", "gateway.commands", "check", "--conf", base / "conf.d"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        (said,) = [line for line in done.stdout.splitlines() if "no program runs" in line]
        assert said.startswith("warning: conf.d/10.yaml:2: accounts: mail will wait: ")
        assert f" {base}/own/.qmail-default:2: no program runs as the gateway's own user" in said
