"""With a file in conf.d that does not load, a gateway that runs is still seen, asked and traced."""

import asyncio
import json
import smtplib

import pytest
from click.testing import CliRunner

from gateway.commands.group import mailward
from gateway.testing.sink import sink

BROKEN = "x: {\n"
PROBLEM = "conf.d/zz.yaml:2: no valid YAML"


def jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def waiting(site, running):
    """Break the folder of a running gateway; gives the id of a message that waits in its queue."""
    port = running()
    site.mailward("queue", "suspend", "elsewhere.example")
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
        client.sendmail("ann@example.com", ["joe@elsewhere.example"], "Subject: hello\r\n\r\nhi\r\n")
    (row,) = jsonl(site.mailward("queue", "list", "--json"))
    site.write("zz.yaml", BROKEN)
    assert PROBLEM in site.mailward("check", code=1)
    return row["id"]


def test_status_shows_what_runs_and_what_does_not_load(site, waiting):
    del waiting
    said = site.mailward("status")
    assert f"configuration 1 from {site.conf}" in said
    assert f"the folder does not load\t{PROBLEM}" in said
    assert "listener\tmx smtp" in said
    (row,) = jsonl(site.mailward("status", "--json"))
    assert [one.startswith(PROBLEM) for one in row["problems"]] == [True]
    (site.conf / "zz.yaml").unlink()
    assert "does not load" not in site.mailward("status")
    assert jsonl(site.mailward("status", "--json"))[0]["problems"] == []


def test_the_queue_is_worked_and_its_mail_traced(site, waiting):
    assert waiting in site.mailward("queue", "list")
    assert "elsewhere.example" in site.mailward("queue", "stats")
    assert waiting in site.mailward("queue", "hold", "--all")
    assert "has answered" in site.mailward("queue", "backoff")
    assert "message.held" in site.mailward("trace", waiting)
    assert "nothing was reloaded" in site.mailward("reload", code=1)


def test_the_state_is_taken_from_what_can_be_read_and_never_guessed(site, waiting):
    gateway = (site.conf / "10-gateway.yaml").read_text()
    for file, text, known in (
        ("zz.yaml", "nonsense: {key: 1}\nlimits: {idel: 5s}\n", True),
        # The default counts where every file can be read, and none says another.
        ("10-gateway.yaml", "gateway: {hostnam: mail.example.org}\n", True),
        ("10-gateway.yaml", "gateway: {state: var\n", False),
    ):
        site.write("zz.yaml", "")
        site.write("10-gateway.yaml", gateway)
        site.write(file, text)
        said = site.mailward("queue", "list", code=0 if known else 1)
        assert (waiting if known else "conf.d/10-gateway.yaml:2: no valid YAML") in said


def test_without_a_gateway_the_folder_is_what_is_wrong(site):
    site.write("zz.yaml", BROKEN)
    for command in (["status"], ["queue", "list"]):
        assert PROBLEM in site.mailward(*command, code=1)


async def test_the_demo_goes_on_without_the_words_beforehand(site, running, monkeypatch, tmp_path):
    home = site.home("abc", default="./Maildir/\n", info="./Maildir/\n")
    async with sink("127.0.0.1", 0, tmp_path / "sink") as port:
        site.write("40-remote.yaml", f'remote: {{routes: {{"": "127.0.0.1:{port}"}}}}\n')
        listens = running()
        site.write("zz.yaml", BROKEN)
        monkeypatch.setattr("gateway.commands.demo._listener", lambda _: ("127.0.0.1", listens))
        monkeypatch.chdir(site.base)
        result = await asyncio.to_thread(CliRunner().invoke, mailward, ["demo"])
    assert result.exit_code == 0, result.output
    assert (
        f"It does not load any more, so what plugins say beforehand is left out:\n{PROBLEM}" in result.output
    )
    assert result.output.count("message.finished") == 2
    assert len(list(home.glob("Maildir/new/*"))) == 1
