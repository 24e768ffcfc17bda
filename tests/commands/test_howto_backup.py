"""docs/howto/backup-and-restore.md does what it says: its commands are run, from one machine to another."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.address import Address
from gateway.envelope import Entry, EntryRecipient, Recipient, new_id
from gateway.journal.formats import FORMATS
from gateway.message import Message
from gateway.queue import Snapshot
from gateway.queue.archive.writer import Manifest, Writer
from gateway.settings import Settings
from gateway.settings.tree import Tree

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "howto" / "backup-and-restore.md").read_text()
PROGRAM = """\
#!{python}
from gateway.commands import assembly, main
assembly.leave_root = lambda _: None  # others may not enter the test's folder
main()
"""
#: Stands for the way to another host.
SCP = """\
#!/bin/sh
shift
for last; do :; done
mkdir -p "{far}/${{last#*:}}"
while [ $# -gt 1 ]; do cp -r "$1" "{far}/${{last#*:}}"; shift; done
"""


@pytest.fixture
def spare(site, tmp_path):
    made = type(site)(tmp_path / "spare")
    shutil.copytree(site.conf, made.conf)
    return made


@pytest.fixture
def shell(site, tmp_path):
    """Give `shell(site, script)`: what an admin types there, with the page's folders in the test's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    far = tmp_path / "backup.example.net"
    for name, text in (("mailward", PROGRAM.format(python=sys.executable)), ("scp", SCP.format(far=far))):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(where, script):
        for path, real in (
            ("/var/backups/mailward", site.base / "backups"),
            ("/var/lib/mailward", site.base / "var"),
            ("/mnt/old", site.base / "var"),
        ):
            script = script.replace(path, str(real))
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "MAILWARD_CONF": str(where.conf),
            "PYTHONPATH": str(DOCS.parent),
        }
        done = subprocess.run(
            ["bash", "-e"],
            input=script,
            env=environment,
            cwd=far if far.exists() else tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def put(site, *tokens):
    """Have messages in the queue of a gateway that does not run."""
    (site.base / "var").mkdir(exist_ok=True)
    with (site.base / "in.tar").open("wb") as out:
        writer = Writer(out, Manifest(1.0, "mail.example.org", "0.1.0"))
        for token in tokens:
            to = [EntryRecipient(0, Recipient.of("joe@elsewhere.example"))]
            text = Message(f"Subject: {token}\n".encode(), b"\nhi\n")
            writer.add(Snapshot(Entry(new_id(), Address(f"{token}@example.com"), text, to, 1.7e9), 0, 1))
        writer.end()
    return f"mailward queue restore {site.base / 'in.tar'}\n"


def test_the_commands_of_the_page_carry_a_queue_to_another_machine(site, spare, shell):
    # What salvage says has a test of its own.
    make, ship, restore, adopt, _ = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    shell(site, put(site, "ann", "bob", "eve"))
    (site.base / "backups").mkdir()
    assert "whole, 3 messages" in shell(site, make)
    shell(site, "mailward queue delete --sender bob@example.com")
    shell(site, put(site, "late"))
    shell(site, ship)
    (spare.base / "var").mkdir()
    said = shell(spare, restore)
    assert "2 messages restored, 0 were known here, 1 recipients had ended" in said
    assert "lost: " in said
    assert "<late@example.com>" in said
    assert "1 messages adopted, 2 were known here" in shell(spare, adopt)


def test_the_settings_of_the_page_are_settings():
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    backup = Settings.of(Tree.parse({"conf.d/a.yaml": yaml})).queue.backup
    assert (str(backup.to), backup.every, backup.keep) == ("/var/backups/mailward", 300, 24)


def test_the_table_of_formats_is_what_the_code_says():
    text = (DOCS / "reference" / "archive.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|" + r" `(\S+)` \|" * 4 + "$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["time", "event", "id", "sequence", "host", "message"]
    for field, *places in rows:
        assert places == [form.places.get(field, f"{form.rest}{field}") for form in FORMATS.values()]
