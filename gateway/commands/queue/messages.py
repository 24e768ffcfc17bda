"""`mailward queue export`, `import`, `adopt`: messages as files, and what a dead gateway has left."""

from __future__ import annotations

import socket
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import conf_option, json_option, load, print_json
from gateway.commands.queue.archives import archived, forget_body, load_archive
from gateway.commands.queue.asking import PATTERNS, filters, wanted
from gateway.commands.queue.work import asked, bar, beside_the_queue, give_away, in_child
from gateway.errors import ArchiveError, MessageError, QueueError

if TYPE_CHECKING:
    from gateway.queue import Snapshot


@click.command(epilog=f"Example: mailward queue export --sender ann@example.org /tmp/anns\n\n{PATTERNS}")
@filters
@click.option("--all", "every", is_flag=True, help="Every message; needed when nothing else is given.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@conf_option
@json_option
def export(folder: Path, every: bool, conf: Path | None, as_json: bool, **options: Any) -> None:
    """Write messages into DIR, each as ID.eml (its text) and ID.json (envelope and state).

    They stay in the queue. `mailward queue import DIR` takes them in again, here or elsewhere.
    """
    from gateway.queue import Filter
    from gateway.queue.archive.reader import Archive

    found = wanted(**options)
    if bool(found) == every:
        raise click.UsageError("say which messages: --id, --sender and so on, or --all for every one")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = load(conf)
    with tempfile.TemporaryFile(dir=folder) as out, bar("export") as advance:
        rows = in_child(lambda: archived(configuration, out, Filter(**found)))
        row: dict[str, Any] = {"messages": 0}
        for row in rows:
            advance(row["messages"], row["total"])
        Archive(out, str(folder)).unpack(folder)
    if not row["messages"]:
        raise QueueError("no message in the queue is meant by that, so nothing was written")
    if as_json:
        print_json([{"messages": row["messages"]}])
    else:
        click.echo(f"{row['messages']} messages in {folder}")


@click.command(
    "import",
    epilog="""\b
Examples:
  mailward queue import /tmp/anns
  mailward queue import /tmp/anns/01997a3e-5a40-7c4e-9d6b-0a3f2d7c5e11.eml --hold""",
)
@click.argument("source", metavar="DIR|FILE", type=click.Path(path_type=Path, exists=True))
@click.option("--hold", is_flag=True, help="Hold all that is imported, until `queue release`.")
@conf_option
@json_option
def import_(source: Path, hold: bool, conf: Path | None, as_json: bool) -> None:
    """Put exported messages into the queue: all of a folder, or one; the JSON lies beside its text.

    All are read before the first is added. One that is in the queue, or ended in it within `queue.lifetime`,
    is not added again.
    """
    from gateway.queue.archive.writer import Manifest, Writer

    configuration = load(conf)
    with beside_the_queue(configuration) as folder:
        staged = folder / "archive.tar"
        with staged.open("xb") as out:
            writer = Writer(out, Manifest(time.time(), socket.gethostname(), version("mailward")))
            for path in sorted(source.glob("*.json")) if source.is_dir() else [source]:
                one = _read(path, folder)
                writer.add(one)
                forget_body(one.entry.message.body)
            writer.end()
        if not writer.messages:
            raise ArchiveError(f"{source} holds no exported message: no ID.json")
        give_away(folder, configuration)
        loaded = load_archive(configuration, staged, str(source), writer.messages, hold=hold)
    if as_json:
        print_json([loaded])
    else:
        click.echo(f"{loaded['added']} messages imported, {loaded['known']} were known here")


@click.command(epilog="Example: mailward queue adopt /mnt/old/var/lib/mailward/queue/shard-0")
@click.argument("folder", metavar="PATH", type=click.Path(path_type=Path, exists=True, file_okay=False))
@conf_option
@json_option
def adopt(folder: Path, conf: Path | None, as_json: bool) -> None:
    """Move the messages that a dead gateway has left into this one's queue; PATH is one of its shards.

    The gateway's user must be able to read and write there. A shard whose gateway lives is refused. Broken
    off, the same command moves the rest; at the end the shard is empty.
    """
    configuration = load(conf)
    loaded = {"added": 0, "known": 0}
    with bar("adopt") as advance:
        for loaded in asked(configuration, "archive.adopt", folder=str(folder.resolve())):
            advance(loaded["added"] + loaded["known"], 0)
    if as_json:
        print_json([loaded])
    else:
        click.echo(f"{loaded['added']} messages adopted, {loaded['known']} were known here")


def _read(path: Path, folder: Path) -> Snapshot:
    """Read one message; `path` is its text or its JSON. Raises ArchiveError."""
    from gateway.message import Spool
    from gateway.queue.archive.form import read_snapshot
    from gateway.queue.archive.reader import LONGEST_HEADER

    text, said = path.with_suffix(".eml"), path.with_suffix(".json")
    spool = Spool(folder)
    try:
        with text.open("rb") as file:
            while block := file.read(LONGEST_HEADER):
                spool.write(block)
        found = read_snapshot(said.read_bytes(), spool.finish())
    except (ValueError, MessageError) as error:
        raise ArchiveError(f"{said}: {error}") from error
    finally:
        spool.discard()
    if found.entry.message.header.partition(b"\n")[0].endswith(b"\r"):
        raise ArchiveError(f"{text} has CRLF at its line ends; messages are kept with LF: convert it first")
    return found
