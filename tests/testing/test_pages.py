"""The code of docs/tutorial/first-plugin.md and docs/testing.md runs, and does what the pages say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.commands import assembly
from gateway.commands.group import mailward
from gateway.testing import contract

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/tutorial/first-plugin.md").read_text("utf-8")


def blocks(text, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shown(text):
    """Give the outputs of a page: what is indented by four."""
    return [
        re.sub("^    ", "", one, flags=re.MULTILINE)
        for one in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    ]


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    plugin, test = blocks(TUTORIAL, "python")
    for name, source in (("big_mail.py", plugin), ("test_big_mail.py", test)):
        (folder / name).write_text(source)
        (folder / name).chmod(0o644)
    return folder


@pytest.mark.timeout(180)  # a pytest of its own
def test_the_test_of_the_tutorial_passes(written):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_big_mail.py"],
        cwd=written,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


async def test_the_first_draft_of_the_tutorial_breaks_the_contract(written):
    source = (written / "big_mail.py").read_text()
    draft = written / "big_mail.py"
    draft.write_text(source.replace('params.get("SIZE", "")', 'params["SIZE"]'))
    with pytest.raises(AssertionError) as caught:
        await contract(draft, "big_mail: {over: 1K}")
    said = next(one for one in shown(TUTORIAL) if one.startswith("big_mail breaks"))
    assert str(caught.value).startswith(said.rstrip())


def test_the_message_of_the_tutorial_would_wait(written, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "leave_root", lambda _: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.d").mkdir()
    (yaml,) = blocks(TUTORIAL, "yaml")
    (tmp_path / "conf.d" / "site.yaml").write_text(yaml.replace("/etc/mailward/plugins", str(written)))
    (tmp_path / "holiday.eml").write_bytes(b"Subject: holiday\r\n\r\n" + b"a line of text\r\n" * 1000)
    (line,) = [one for one in blocks(TUTORIAL, "sh") if "plugin test" in one]
    result = CliRunner().invoke(mailward, ["--conf", "conf.d", *line.split()[1:]])
    assert result.exit_code == 0, result.output
    said = next(one for one in shown(TUTORIAL) if one.startswith("mail "))
    assert result.output.split() == said.split()


async def test_the_replay_of_the_page_does_what_it_says(tmp_path):
    (source,) = [
        one for one in blocks((ROOT / "docs/testing.md").read_text("utf-8"), "python") if "replay(" in one
    ]
    names = {"CONTRIB": ROOT / "contrib" / "plugins"}
    exec(compile(source, "docs/testing.md", "exec"), names)
    await names["test_what_becomes_of_a_message"](tmp_path)


def test_the_page_names_all_of_the_kit():
    from gateway import testing

    page = (ROOT / "docs/testing.md").read_text("utf-8")
    kit = re.findall(r"as (\w+)$", Path(testing.__file__).read_text("utf-8"), re.MULTILINE)
    assert [name for name in kit if name not in page and name != "Heard"] == []


def test_every_example_stands_in_the_list_and_is_short():
    page = (ROOT / "contrib/plugins/README.md").read_text("utf-8")
    for path in (ROOT / "contrib" / "plugins").glob("*.py"):
        assert f"`{path.name}`" in page
        lines = path.read_text("utf-8").splitlines()
        assert lines[0].startswith(f'"""{path.stem}: ')
        assert len(lines) < 100 or path.stem == "accounts_sql"
