"""`mailward import-qmail`: take an installation of qmail over, and the mail in its queue."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.common import conf_option, load
from gateway.errors import ConfigError, ControlError, QueueError

if TYPE_CHECKING:
    from gateway.commands.assembly import Assembly
    from gateway.commands.old_queue import Left
    from gateway.worker import Configuration


@click.command(
    "import-qmail",
    epilog="""\b
Examples:
  mailward import-qmail /var/qmail /etc/mailward --rules /etc/tcp.smtp
  mailward import-qmail --queue /var/qmail/queue""",
)
@click.argument("folders", metavar="DIR [OUT]", nargs=-1, type=click.Path(path_type=Path, file_okay=False))
@click.option("--rules", type=click.Path(path_type=Path, exists=True), help="tcpserver's rules, as tcp.smtp.")
@click.option("--queue", "queue", is_flag=True, help="DIR is a queue: take the mail in it over.")
@conf_option
def import_qmail(folders: tuple[Path, ...], rules: Path | None, queue: bool, conf: Path | None) -> None:
    """Write the settings of the qmail in DIR into OUT/conf.d, where no file may be yet.

    Lists are copied to OUT/control. With --queue the mail in a queue is taken over instead, while neither
    qmail nor the gateway runs; the old queue is left as it is, and a second time adds nothing.
    """
    if len(folders) != (1 if queue else 2):
        raise click.UsageError("give DIR and OUT, or --queue and DIR")
    if queue:
        _take_over(load(conf), folders[0])
    else:
        _write(folders[0], folders[1], rules)


def _write(old: Path, new: Path, rules: Path | None) -> None:
    from gateway.commands.installation import FILES, read_installation

    conf = new / "conf.d"
    if not (old / "control").is_dir():
        raise ConfigError(f"{old} holds no folder `control`: name the home of qmail, such as /var/qmail")
    if conf.exists() and any(conf.iterdir()):
        raise ConfigError(f"{conf} is not empty: nothing was written")
    conf.mkdir(parents=True, exist_ok=True)
    site = read_installation(old, new, rules)
    for name, sections in FILES.items():
        text = site.yaml(sections)
        if not text.strip():
            continue
        (conf / name).write_text(text, "utf-8", "surrogateescape")
        click.echo(f"wrote {conf / name}")
    for line in site.report:
        click.echo(f"note: {line}")
    click.echo(f"Read them; then  mailward check --conf {conf}  and  mailward run --conf {conf}")


def _take_over(configuration: Configuration, queue: Path) -> None:
    """Read the old queue as who we are, and store it as the gateway's user."""
    from gateway import console
    from gateway.commands.assembly import Assembly
    from gateway.commands.old_queue import left_in

    state = configuration.settings.gateway.state
    if not (queue / "mess").is_dir():
        raise ConfigError(f"{queue} is no queue of qmail: it holds no folder `mess`")
    if console.running(state):
        raise ControlError("a gateway runs on this queue: stop it, take the old queue over, start it again")
    if not state.is_dir():
        raise QueueError(f"no gateway has run here: {state} does not exist")
    with tempfile.TemporaryDirectory(prefix="import-", dir=state) as copies:
        found = [_copied(one, Path(copies)) for one in left_in(queue)]
        _give_away(Path(copies), configuration)
        added = asyncio.run(_store(Assembly.of(configuration), found, queue.parent / "control"))
    click.echo(f"{added} of {len(found)} messages were added; the others are in the queue already")


def _copied(left: Left, copies: Path) -> Left:
    """Copy the text: the gateway's user may not read qmail's queue."""
    left.text = Path(shutil.copyfile(left.text, copies / left.number))
    return left


def _give_away(copies: Path, configuration: Configuration) -> None:
    if os.geteuid() == 0:
        account = pwd.getpwnam(configuration.settings.gateway.user or "nobody")
        for path in (copies, *copies.iterdir()):
            os.chown(path, account.pw_uid, account.pw_gid)


async def _store(assembly: Assembly, found: list[Left], control: Path) -> int:
    """Add what the queue does not hold yet; each is in the journal when this returns."""
    from gateway.commands.old_queue import entry_of, virtual_domains
    from gateway.hookspecs import Stages
    from gateway.journal import Journal
    from gateway.message import Spool
    from gateway.queue.birth import told

    settings = assembly.configuration.settings
    queue = (await assembly.generation.chain.ask(Stages.open_queue)).value
    if queue is None:
        raise QueueError("no plugin opens the queue: `mailward check` says why")
    await queue.open()
    journal = Journal(settings.gateway.state / "journal", settings.gateway.hostname)
    virtual, added = virtual_domains(control), 0
    try:
        journal.open()
        for left in found:
            if await queue.get(left.id) is None:
                entry = entry_of(left, Spool(queue.spool_folder), virtual)
                await queue.add(entry)
                for event in told(entry):
                    journal.emit(event)
                added += 1
        await journal.flush()
    finally:
        journal.close()
        await queue.close()
    return added
