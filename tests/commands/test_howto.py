"""docs/howto/add-a-virtual-domain.md does what it says: its commands are run as they stand."""

import os
import pwd
import re
import smtplib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.settings.tree import Tree

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "add-a-virtual-domain.md"
USER = pwd.getpwuid(os.geteuid() or 65534).pw_name
PROGRAM = """\
#!{python}
from gateway.commands import assembly, main
assembly.leave_root = lambda _: None  # others may not enter the test's folder
main()
"""


@pytest.fixture
def shell(site):
    """Run a line as an admin does, with `mailward` in the PATH and /srv in the test's folder."""
    (site.base / "bin").mkdir()
    program = site.base / "bin" / "mailward"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "MAILWARD_CONF": str(site.conf),
        "PYTHONPATH": str(PAGE.parents[2]),
    }

    def run(script):
        script = script.replace("/srv/shop", str(site.base / "home" / "shop")).replace(
            "mailward:", f"{USER}:"
        )
        done = subprocess.run(
            ["bash", "-e"], input=script, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_four_steps_add_a_domain_to_a_running_gateway(site, running, shell):
    port = running()
    home, file, add, reload, address = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as session:
        session.ehlo("client.example")
        for step in (home, file):
            shell(step)
        assert "warning" not in shell(add)
        assert "reloaded" in shell(reload)
        assert session.noop()[0] == 250
    assert ".qmail-default:1: maildir ./Maildir/" in shell(address)
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
        client.sendmail("ann@example.com", ["info@shop.example"], "Subject: order\r\n\r\n1\r\n")
    end = time.monotonic() + 5
    while not (found := list((site.base / "home" / "shop" / "Maildir" / "new").iterdir())):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert b"Subject: order" in found[0].read_bytes()


def test_the_file_of_the_page_is_what_the_command_writes(site, shell):
    (by_hand,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shell("mkdir -p /srv/shop; mailward domain add shop.example shop --home /srv/shop")
    written = (
        (site.conf / "domain-shop.example.yaml").read_text().replace(f"{site.base}/home/shop", "/srv/shop")
    )
    one, other = (Tree.parse({"conf.d/a.yaml": text}) for text in (by_hand, written))
    for path in (
        ("virtual_domains", "domains", "shop.example"),
        ("rcpthosts", "domains", 0),
        ("accounts", "virtual", "shop", "home"),
    ):
        assert one.text(*path) == other.text(*path) != ""
