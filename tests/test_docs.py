"""What the documents say is run as it stands: commands in `console` blocks, plugins in `python` blocks.

In a block of `console` each line that begins with `$ ` is run beside a running demo; the lines below it must
come in this order among what it prints, where `...` stands for anything and spaces for any space.
"""

import asyncio
import datetime as dt
import os
import re
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gateway import Defer, Disconnect, Recipient, Stages
from gateway.testing import Bench, delivery, entry, message, transaction
from gateway.testing.fakes import FakeClock, FakeDns
from gateway.testing.hosts import ScriptedHost
from gateway.worker import Configuration, Worker

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
#: The demo at other ports: two gateways may run on this machine.
DEMO = """\
import sys
from pathlib import Path
from gateway.commands import main
from gateway.commands.run import __dict__ as run
run["SINK"] = ("127.0.0.1", int(sys.argv.pop()))
run["demo_folder"] = lambda: Path.cwd() / "conf.d"
sys.argv[0] = ".venv/bin/mailward"
main()
"""


def short(path):
    return str(path.relative_to(ROOT))


def blocks(page, kind):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == kind]


def commands(text):
    """Give (command, lines that it must print) of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, [line for line in shown.splitlines() if line.strip()]


def matches(shown, line):
    pattern = r"\s+".join(re.escape(word).replace(r"\.\.\.", ".*") for word in shown.split())
    return re.fullmatch(pattern, " ".join(line.split()))


@pytest.fixture(scope="module")
def demo():
    """Run the demo as `make run` does, on free ports; gives the function that runs a command beside it."""
    with tempfile.TemporaryDirectory(prefix="mailward-docs-") as name:
        base = Path(name)
        base.chmod(0o755)  # as root the gateway becomes nobody
        (base / ".venv" / "bin").mkdir(parents=True)
        shutil.copytree(ROOT / "conf.d", base / "conf.d")
        ports = free_ports(2)
        for file in (base / "conf.d").iterdir():
            text = file.read_text().replace(":2525", f":{ports[0]}").replace(":2526", f":{ports[1]}")
            file.write_text(text)
        (base / "demo.py").write_text(DEMO)
        program = base / ".venv" / "bin" / "mailward"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} demo.py "$@" {ports[1]}\n')
        program.chmod(0o755)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        started = [str(program), "run", "--demo"]
        with subprocess.Popen(
            started, cwd=base, env=environment, stdout=subprocess.PIPE, text=True
        ) as gateway:
            said = [gateway.stdout.readline() for _ in range(3)]

            def run(command):
                done = subprocess.run(
                    ["sh", "-ec", command],
                    cwd=base,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
                return done.stdout.replace(f":{ports[1]}", ":2526").replace(f":{ports[0]}", ":2525")

            run.pid = gateway.pid
            run.said = "".join(said).replace(f":{ports[0]}", ":2525")
            yield run
            gateway.terminate()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_as_root_the_demo_keeps_nothing_of_root(demo):
    status = Path(f"/proc/{demo.pid}/status").read_text()
    assert re.search(r"^Uid:((?:\s+\d+){4})$", status, re.MULTILINE)[1].split() == ["65534"] * 4
    assert "CapPrm:\t0000000000000000" in status


def test_the_start_says_what_the_readme_shows(demo):
    (shown,) = [text for text in blocks("README.md", "") if text.startswith("Mailward serves")]
    for one, said in zip(shown.splitlines(), demo.said.splitlines(), strict=True):
        assert re.sub(r"\d+", "N", one) == re.sub(r"\d+", "N", said)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```console" in page.read_text("utf-8")], ids=short
)
def test_commands_do_what_the_page_shows(demo, page):
    for command, shown in (pair for text in blocks(page, "console") for pair in commands(text)):
        printed = iter(demo(command).splitlines())
        for line in shown:
            assert any(matches(line, one) for one in printed), (
                f"$ {command}\nprinted no line (after these): {line}"
            )


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]*)(?:#[^)]*)?\)", text):
        assert not target or (page.parent / target).exists(), f"{short(page)}: {target}"


@pytest.mark.parametrize(
    "name", ["commands.md", "events.md", "qmail-differences.md", "settings.md", "stages.md"]
)
def test_the_reference_is_what_the_code_says(name):
    from gateway.commands.reference import pages

    assert (ROOT / "docs/reference" / name).read_text("utf-8") == pages()[name], "run `make docs`"


# The plugins of the pages.

FRIDAY = dt.datetime(2026, 3, 6, 12, tzinfo=dt.UTC).timestamp()
DAY = 86400


@pytest.fixture
def bench(tmp_path):
    from gateway.counters import Counters
    from gateway.plugin import Services

    clock = FakeClock(FRIDAY)
    return Bench(tmp_path, Services(clock, FakeDns(), Counters(clock)))


def plugin(page):
    """Give the settings and the plugin that a page shows, whole: the docstring begins with the stem."""
    sources = [text for text in blocks(page, "python") if text.startswith('"""')]
    yaml, *_ = blocks(page, "yaml")
    return yaml, {source[3:].partition(":")[0]: source for source in sources}


async def test_the_plugin_of_the_readme_defers_bulk_mail_on_fridays_alone(bench):
    yaml, files = plugin("README.md")
    chain = bench.chain(yaml, **files)
    bulk, other = transaction("news@example.com"), transaction("ann@example.com")
    assert (await chain.ask(Stages.mail, bulk)).value == Defer("4.7.1", "try again tomorrow")
    assert (await chain.ask(Stages.mail, other)).value is None
    bench.services.clock.advance(DAY)
    assert (await chain.ask(Stages.mail, bulk)).value is None


def test_the_plugin_of_the_readme_is_ten_lines():
    (source,) = blocks("README.md", "python")
    code = [
        line for line in source.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))
    ]
    assert len(code) <= 10


async def test_the_trap_of_the_page_refuses_and_remembers(bench):
    yaml, files = plugin("docs/plugins.md")
    chain = bench.chain(yaml, spam_traps=files["spam_traps"])
    one, other = transaction(), transaction()
    assert (await chain.ask(Stages.rcpt, one, Recipient.of("No.One@example.org"))).value.reason == "trap"
    again = transaction()
    again.session = one.session
    assert (await chain.ask(Stages.mail, again)).value == Disconnect(
        "5.7.0", "not you again", reason="trapped"
    )
    assert (await chain.ask(Stages.mail, other)).value is None


async def test_the_test_of_the_page_passes(tmp_path):
    _, files = plugin("docs/plugins.md")
    source = tmp_path / "spam_traps.py"
    source.write_text(files["spam_traps"])
    (text,) = [text for text in blocks("docs/plugins.md", "python") if "def test_" in text]
    names = {"SOURCE": source}
    exec(compile(text, "docs/plugins.md", "exec"), names)
    await names["test_a_trap_is_refused"](tmp_path)


async def test_the_condition_and_the_stored_note_of_the_page_are_as_it_says(bench):
    _, files = plugin("docs/plugins.md")
    _, when = blocks("docs/plugins.md", "yaml")
    chain = bench.chain(when, **files)
    (step,) = [one for one in chain.steps["rcpt"] if one.plugin == "badmailfrom"]
    about = transaction(ip="192.0.2.9")
    assert step.concerns(about, Recipient.of("x@example.org"))
    assert not step.concerns(about, Recipient.of("x@example.net"))
    await chain.ask(Stages.message, about, message("http://a http://b\n"))
    sent = delivery(entry(notes={"scored": {"links": about.saved["scored"].links}}))
    edited = await chain.transform(Stages.outgoing, sent, message())
    assert edited.value.values("X-Links") == ["2"]


async def test_the_diary_of_the_page_sees_a_running_gateway(tmp_path):
    """The stages that nothing bundled uses: reset, disconnect, queued, outgoing."""
    _, files = plugin("docs/plugins.md")
    (tmp_path / "plugins").mkdir(mode=0o755)
    (tmp_path / "plugins" / "diary.py").write_text(files["diary"])
    (tmp_path / "conf.d").mkdir()
    (port,) = free_ports(1)
    arrived = asyncio.Event()

    async def take(writer):
        writer.write(b"250 2.0.0 taken\r\n")
        arrived.set()

    async with ScriptedHost({".": take}) as host:
        (tmp_path / "conf.d" / "site.yaml").write_text(SITE.format(port=port, host=host.port))
        worker = Worker(Configuration.load(tmp_path / "conf.d"))
        await worker.start()
        await asyncio.to_thread(visit, port)
        await asyncio.wait_for(arrived.wait(), 10)
        await worker.stop()
    assert host.contents[0].startswith(b"X-Attempt: 1\r\nReceived: ")
    lines = (tmp_path / "var" / "diary" / "lines").read_text().splitlines()
    assert lines == ["bob@example.com gave up", "ann@example.com sent a message", "127.0.0.1 left"]


SITE = """\
gateway: {{hostname: mail.example.org, state: var}}
listeners: [{{protocol: smtp, address: "127.0.0.1:{port}"}}]
plugins: {{folders: [plugins]}}
relay_control: {{clients: [127.0.0.1]}}
remote: {{routes: {{"": "127.0.0.1:{host}"}}}}
"""


def visit(port):
    """Give up one message, and send another."""
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.ehlo("client.example")
        client.mail("bob@example.com")
        client.rset()
        client.sendmail("ann@example.com", ["friend@elsewhere.example"], "Subject: hello\r\n\r\nhello\r\n")
