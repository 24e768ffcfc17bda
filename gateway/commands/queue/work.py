"""What the commands for archives share: a process that may leave root, files that appear whole, progress."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import sys
import tempfile
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from gateway.errors import ArchiveError, ControlError, GatewayError, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.configuration import Configuration

    Row = dict[str, Any]
    #: (done, of how much)
    Advance = Callable[[int, int], None]


def asked(configuration: Configuration, name: str, /, **arguments: Any) -> Iterator[Row]:
    """Ask the running gateway, or the queue itself when none runs. Raises GatewayError."""
    from gateway import console
    from gateway.commands.ownership import ask

    state = configuration.settings.gateway.state
    if not console.running(state):
        yield from in_child(lambda: ask(configuration, name, arguments))
        return
    try:
        yield from console.call(state, name, **arguments)
    except TimeoutError:
        raise ControlError(
            f"the gateway at {state / console.SOCKET} does not answer: see whether it hangs. "
            f"Once it answers, the same command does what is left to do"
        ) from None


def in_child(work: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Do work that leaves root, and stay who we are; gives its rows as they come. Raises GatewayError."""
    return forked(work) if os.geteuid() == 0 else work()


def forked(work: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Do work in another process."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(ours)
        _work_and_end(work, theirs)
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as answers:
            for line in answers:
                answer = json.loads(line)
                if "error" in answer:
                    raise ArchiveError(answer["error"])
                if "done" in answer:
                    return
                yield answer["row"]
    finally:
        os.waitpid(child, 0)
    raise ArchiveError("it ended before it had answered")


def _work_and_end(work: Callable[[], Iterator[Row]], answers: int) -> NoReturn:
    with os.fdopen(answers, "w") as file:
        try:
            for row in work():
                print(json.dumps({"row": row}), file=file, flush=True)
            print('{"done": true}', file=file)
        except (GatewayError, OSError) as error:
            print(json.dumps({"error": str(error)}), file=file)
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it is
            traceback.print_exc()
    os._exit(0)


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when it is whole and on stable storage."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def beside_the_queue(configuration: Configuration) -> Iterator[Path]:
    """Make a folder in the gateway's state, for what the gateway is to read."""
    state = configuration.settings.gateway.state
    if not state.is_dir():
        raise QueueError(f"no gateway has run here: {state} does not exist")
    for left in state.glob("restore-*"):
        # One whose command was killed is not locked any more.
        with suppress(OSError), _locked(left):
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=state) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder. Raises OSError when another has it."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def give_away(folder: Path, configuration: Configuration) -> None:
    """Let the gateway's user read what root has written."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(configuration.settings.gateway.user or "nobody")
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, account.pw_uid, account.pw_gid)


@contextmanager
def bar(what: str) -> Iterator[Advance]:
    """Show a person how far it has come, and programs nothing."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total or None)
