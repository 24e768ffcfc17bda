"""`mailward queue backup`, `restore`, `verify`: the whole queue as one file."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from gateway.commands.common import conf_option, json_option, load, plain, print_json
from gateway.commands.queue.work import asked, bar, beside_the_queue, give_away, in_child, replaced
from gateway.errors import ArchiveError, GatewayError, QueueError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from gateway.commands.queue.work import Row
    from gateway.configuration import Configuration
    from gateway.message import FileBody
    from gateway.queue import Filter, Queue
    from gateway.queue.archive.fates import Fates
    from gateway.queue.archive.reader import Archive

#: Ids that one question names.
_IDS = 1000
#: Messages between two signs of progress.
_STEP = 100
_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.command(
    epilog="""\b
Examples:
  mailward queue backup /var/backups/mailward.tar
  mailward queue backup /backup/$(date +%F-%H%M).tar --json"""
)
@_file
@conf_option
@json_option
def backup(file: Path, conf: Path | None, as_json: bool) -> None:
    """Write all messages in the queue into the archive FILE.

    The gateway may run, and goes on meanwhile. The file appears when it is whole, for your eyes only; one of
    this name is replaced. The archive holds every message that was accepted before the command began and has
    not ended by its end.
    """
    configuration = load(conf)
    began = time.monotonic()
    with replaced(file) as out, bar("backup") as advance:
        row: Row = {}
        for row in in_child(lambda: archived(configuration, out)):
            advance(row["messages"], row["total"])
        size = out.seek(0, os.SEEK_END)
    made = {"file": str(file.resolve()), "messages": row["messages"], "size": size}
    made["seconds"] = round(time.monotonic() - began, 3)
    try:
        list(asked(configuration, "archive.made", **made))
    except GatewayError as error:
        click.echo(f"the backup is whole, but the journal does not tell of it: {error}", err=True)
    if as_json:
        print_json([made])
    else:
        click.echo(f"{file}: {made['messages']} messages, {size} bytes")


@click.command(epilog="Example: mailward queue verify /var/backups/mailward.tar")
@_file
@json_option
def verify(file: Path, as_json: bool) -> None:
    """Read the whole archive FILE, and say whether it is unharmed; nothing is loaded."""
    from gateway.queue.archive.reader import Archive

    with Archive.at(file) as archive:
        messages = _verified(archive)
        manifest = archive.manifest
    if as_json:
        print_json(
            [{"file": str(file), "messages": messages, "created": manifest.created, "host": manifest.host}]
        )
    else:
        made = dt.datetime.fromtimestamp(manifest.created).astimezone().isoformat(" ", "seconds")
        click.echo(f"{file}: whole, {messages} messages, made {made} on {plain(manifest.host)}")


@click.command(
    epilog="""\b
Examples:
  mailward queue restore mailward.tar
  mailward queue restore mailward.tar --delivered /mnt/old/var/journal
  mailward queue restore mailward.tar --delivered siem-export.jsonl --hold"""
)
@_file
@click.option("--hold", is_flag=True, help="Hold all that is restored, until `queue release`.")
@click.option(
    "--delivered",
    "journals",
    multiple=True,
    metavar="JOURNAL",
    type=click.Path(path_type=Path, exists=True),
    help="A journal's folder, or a file of exported events (json, ecs, ocsf, cim): recipients whose end is "
    "told there are left out. May be repeated.",
)
@conf_option
@json_option
def restore(file: Path, hold: bool, journals: tuple[Path, ...], conf: Path | None, as_json: bool) -> None:
    """Put the messages of the archive FILE into the queue, with the gateway running or not.

    The archive is read whole before; if it is damaged, nothing is loaded. A message that is in the queue, or
    ended in it within `queue.lifetime`, is not added again. Without --delivered, what was delivered since the
    backup is delivered once more.
    """
    from gateway.queue.archive.reader import Archive

    configuration = load(conf)
    with Archive.at(file) as archive, beside_the_queue(configuration) as folder:
        total = _verified(archive)
        staged = folder / "archive.tar"
        verdict = _judged(configuration, archive, journals, staged) if journals else _copied(file, staged)
        give_away(folder, configuration)
        loaded = load_archive(
            configuration, staged, str(file), total, delivered=verdict["left_out"], hold=hold
        )
    told = {**loaded, **verdict}
    if as_json:
        print_json([told])
        return
    click.echo(
        f"{told['added']} messages restored{' and held' if hold else ''}, {told['known']} were known here, "
        f"{told['left_out']} recipients had ended"
    )
    for line in told["again"]:
        click.echo(f"again: {plain(line)}")
    for stream, count in told["holes"].items():
        click.echo(f"unknown: {count} events of stream {plain(stream)} are missing, and what they tell")
    for one in told["lost"]:
        when = dt.datetime.fromtimestamp(one["time"]).astimezone().isoformat(" ", "seconds")
        born = f", born from {plain(one['parent'])}" if one["parent"] else ""
        click.echo(f"lost: {plain(one['id'])} from <{plain(one['sender'])}>{born}, accepted {when}")


def archived(configuration: Configuration, out: IO[bytes], only: Filter | None = None) -> Iterator[Row]:
    """Write the queue, or what a filter matches, as an archive; as root, become the gateway's user before."""
    from gateway.journal import positions
    from gateway.queue.archive.writer import Manifest, Writer

    gateway = configuration.settings.gateway
    if not gateway.state.is_dir():
        raise QueueError(f"no gateway has run here: {gateway.state} does not exist")
    queue = store_of(configuration)
    created = time.time()
    manifest = Manifest(created, gateway.hostname, version("mailward"), positions(gateway.state / "journal"))
    writer = Writer(out, manifest)
    with ExitStack() as stack:
        views = [stack.enter_context(view) for view in queue.views()]
        total = sum(view.count() for view in views)
        for read, one in enumerate(found for view in views for found in view.snapshots()):
            if only is None or any(only.matches(one.entry, recipient) for recipient in one.entry.recipients):
                writer.add(one)
            if read % _STEP == 0:
                yield {"messages": read, "total": total}
    writer.end()
    out.flush()
    yield {"messages": writer.messages, "total": writer.messages}


def store_of(configuration: Configuration) -> Queue:
    """Give the store, not open; as root, become the gateway's user before. Raises QueueError."""
    from gateway.commands.assembly import Assembly
    from gateway.hookspecs import Stages

    assembly = Assembly.of(configuration)
    queue: Queue | None = asyncio.run(assembly.generation.chain.ask(Stages.open_queue)).value
    if queue is None:
        raise QueueError("no plugin opens the queue: `mailward check` says why")
    return queue


def load_archive(
    configuration: Configuration,
    staged: Path,
    source: str,
    total: int,
    *,
    delivered: int = 0,
    hold: bool = False,
) -> Row:
    """Have an archive loaded that lies beside the queue; gives how many were added, and how many known."""
    loaded = {"added": 0, "known": 0}
    arguments: dict[str, Any] = {"source": source, "delivered": delivered, "hold": hold}
    try:
        with bar("restore") as advance:
            for loaded in asked(configuration, "archive.restore", file=str(staged), **arguments):
                advance(loaded["added"] + loaded["known"], total)
    except GatewayError as error:
        raise ArchiveError(f"{error}\n{loaded['added']} messages were added before that") from error
    return loaded


def _verified(archive: Archive) -> int:
    with bar("verify") as advance:
        return archive.verify(lambda done: advance(done, archive.size))


def _copied(file: Path, staged: Path) -> Row:
    shutil.copyfile(file, staged)
    return {"left_out": 0, "again": [], "lost": [], "holes": {}}


def _judged(configuration: Configuration, archive: Archive, journals: Sequence[Path], staged: Path) -> Row:
    """Write the archive anew without the recipients whose end is told."""
    from gateway.queue.archive.fates import Fates
    from gateway.queue.archive.writer import Writer

    fates = Fates(archive.manifest, set(archive.ids()), journals)
    fates.present = _present(configuration, fates)
    left_out, again = 0, []
    with staged.open("xb") as out:
        writer = Writer(out, archive.manifest)
        for one in archive.snapshots(staged.parent):
            judged = fates.judge(one)
            again += judged.doubts
            left_out += judged.ended
            if judged.snapshot:
                writer.add(judged.snapshot)
            forget_body(one.entry.message.body)
        writer.remember(archive.finished())
        writer.end()
    lost = [asdict(one) for one in fates.lost()]
    return {"left_out": left_out, "again": again, "lost": lost, "holes": fates.holes()}


def _present(configuration: Configuration, fates: Fates) -> Collection[str]:
    ids = sorted(fates.mentioned())
    pages = [ids[at : at + _IDS] for at in range(0, len(ids), _IDS)]
    return {row["id"] for page in pages for row in asked(configuration, "archive.known", ids=page)}


def forget_body(body: bytes | FileBody) -> None:
    """Drop a body that was a file, once it is written elsewhere."""
    if not isinstance(body, bytes):
        body.path.unlink()
