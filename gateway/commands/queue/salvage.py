"""`mailward queue salvage`: what is whole in a damaged part of the queue, as an archive."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from gateway.commands.common import conf_option, json_option, load, plain, print_json
from gateway.commands.queue.archives import store_of
from gateway.commands.queue.work import bar, in_child, replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.commands.queue.work import Row
    from gateway.configuration import Configuration
    from gateway.queue import Snapshot

#: Messages between two signs of progress.
_STEP = 100


@click.command(
    epilog="""\b
Example:
  mailward queue salvage /var/lib/mailward/queue/damaged-shard-0 /root/saved.tar
  mailward queue restore /root/saved.tar"""
)
@click.argument("shard", metavar="SHARD|FILE", type=click.Path(path_type=Path, exists=True))
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@conf_option
@json_option
def salvage(shard: Path, archive: Path, conf: Path | None, as_json: bool) -> None:
    """Write what can be read of a damaged shard into ARCHIVE, for `queue restore`.

    SHARD is the folder that was moved aside, or the file in it; nothing in there is changed. A message of
    which something is lost is named; if there is one, the exit code is 1. What was being delivered when the
    gateway stopped, and what cannot be told, is delivered again by a restore.
    """
    configuration = load(conf)
    lost: list[int] = []
    with replaced(archive) as out:
        rows = in_child(lambda: _salvaged(configuration, shard.resolve(), out))
        with bar("salvage") as advance:
            row = next(rows)
            while "sure" not in row:
                advance(row["done"], row["total"])
                row = next(rows)
    for loss in rows:
        lost.append(loss["saved"])
        if as_json:
            print_json([loss])
        else:
            click.echo(_said(loss))
    told = {**row, "file": str(archive.resolve()), "lost": lost.count(False), "in_part": lost.count(True)}
    if as_json:
        print_json([told])
    else:
        click.echo(f"{archive}: {told['messages']} messages saved, {told['lost']} lost", nl=False)
        click.echo(f", {told['in_part']} of those saved are not whole" if told["in_part"] else "")
        if not told["sure"]:
            click.echo("unknown: not all that names messages can be read, so more may be lost")
    if lost or not told["sure"]:
        sys.exit(1)


def _salvaged(configuration: Configuration, shard: Path, out: IO[bytes]) -> Iterator[Row]:
    """Write the archive; gives how far it has come, then what was saved, then each loss."""
    from gateway.queue.archive.writer import Manifest, Writer

    with store_of(configuration).wreck(shard) as wreck:
        for done, total in wreck.read():
            yield {"done": done, "total": total}
        # As old as what is in it: `restore --delivered` then believes all that a journal tells since.
        created = min(time.time(), wreck.oldest())
        writer = Writer(out, Manifest(created, configuration.settings.gateway.hostname, version("mailward")))
        total = wreck.count()
        for read, one in enumerate(wreck.snapshots()):
            if fault := _fault(one):
                wreck.lose(one, fault)
            else:
                writer.add(one)
            if read % _STEP == 0:
                yield {"done": read, "total": total}
        writer.remember(wreck.finished())
        writer.end()
        out.flush()
        yield {"messages": writer.messages, "sure": wreck.sure}
        yield from map(asdict, wreck.losses())


def _said(loss: Row) -> str:
    """Name a loss on one line."""
    name = plain(loss["id"]) or "a message without a readable id"
    waiting = ", ".join(map(plain, loss["recipients"]))
    to = f" to {waiting}" if waiting else ""
    verb = "in part" if loss["saved"] else "lost"
    return f"{verb}: {name} from <{plain(loss['sender'])}>{to}: {plain(loss['missing'])}"


def _fault(snapshot: Snapshot) -> str:
    """Say why a restore would refuse a message; it would refuse all others, too."""
    from gateway.queue.archive.form import read_snapshot, snapshot_json

    try:
        read_snapshot(snapshot_json(snapshot), snapshot.entry.message)
    except (ValueError, TypeError) as error:
        return f"its envelope: {error}"
    return ""
