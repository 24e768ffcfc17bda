"""`mailward run`: serve mail in the foreground."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway import signals
from gateway.commands.common import conf_option, configuration_folder
from gateway.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from gateway.configuration import Configuration
    from gateway.listeners import Sockets

SINK = ("127.0.0.1", 2526)
_ACCOUNTS = ("abc", "xyz")


@click.command(
    epilog="""\b
Examples:
  mailward run --conf /etc/mailward/conf.d
  mailward run --demo      a gateway to play with, state under ./var
"""
)
@conf_option
@click.option("--demo", is_flag=True, help="Run the shipped demo on loopback, with its state under ./var.")
def run(conf: Path | None, demo: bool) -> None:
    """Serve mail in the foreground until SIGTERM; SIGHUP reloads."""
    signals.hold()
    folder = demo_folder() if demo else configuration_folder(conf)
    base = Path.cwd() if demo else None
    if os.geteuid() == 0 and demo:
        _leave_root(folder, base)
    elif os.geteuid() == 0:
        from gateway import agent

        serve = functools.partial(_serve, folder, base, demo=demo)
        sys.exit(agent.run(folder, lambda: _plan(folder, base), serve))
    _serve(folder, base, demo=demo)


def _leave_root(folder: Path, base: Path | None) -> None:
    """Become `gateway.user` for good: the demo needs nobody's rights, and its homes are that user's."""
    from gateway.partition.privilege import become, give_state, read, user_of

    made = read(folder, lambda: _plan(folder, base))
    account = user_of(made["user"], made["user_at"])
    # In a folder of whoever looks at the demo: that is not root's, as a rule.
    give_state(Path(made["state"]), account, guarded=False)
    become(account.pw_uid, account.pw_gid, account.pw_name)
    os.umask(0o027)


def _plan(folder: Path, base: Path | None) -> dict[str, Any]:
    """Read the configuration for the agent; this runs in a process without rights."""
    from gateway.configuration import Configuration
    from gateway.partition import plan

    return plan.make(Configuration.load(folder, base))


def _serve(
    folder: Path,
    base: Path | None,
    shares: Sequence[Sockets] | None = None,
    door: socket.socket | None = None,
    *,
    demo: bool,
) -> None:
    """Serve as the user that we are; an agent has opened the sockets, and `door` is the way to it."""
    from gateway import supervisor
    from gateway.agency import Agency
    from gateway.configuration import Configuration

    configuration = Configuration.load(folder, base)
    beside = (lambda: _demo_world(configuration)) if demo else supervisor.nothing
    agency = Agency(door) if door else None
    supervisor.run(configuration, lambda: _say_ready(configuration, demo=demo), beside, shares, agency)


def demo_folder() -> Path:
    """Find the shipped demo configuration: in the wheel, or beside `gateway/` in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "_conf.d", package.parent / "conf.d"):
        if folder.is_dir():
            return folder
    raise ConfigError("the demo configuration is missing: install mailward again")


@contextlib.asynccontextmanager
async def _demo_world(configuration: Configuration) -> AsyncIterator[None]:
    """Make the demo's homes, and receive what it sends to remote hosts."""
    from gateway.testing.sink import sink

    state = configuration.settings.gateway.state
    for name in _ACCOUNTS:
        make_home(state / "home" / name)
    async with sink(*SINK, state / "sink"):
        yield


def make_home(home: Path) -> None:
    """Make a home with a catch-all and an `info` of its own; what is there stays."""
    for folder in ("all", "info"):
        for part in ("tmp", "new", "cur"):
            (home / folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, line in ((".qmail-default", "./all/\n"), (".qmail-info", "./info/\n")):
        if not (home / name).exists():
            (home / name).write_text(line)


def _say_ready(configuration: Configuration, *, demo: bool) -> None:
    """Tell a person what runs; nothing when events go to stdout or stderr, which readers parse."""
    if any(isinstance(output.to, str) for output in configuration.settings.journal.outputs):
        return
    where = ", ".join(f"{one.name} at {one.address}" for one in configuration.settings.listeners)
    click.echo(f"Mailward serves {where} (pid {os.getpid()}, uid {os.geteuid()}).")
    if demo:
        command = Path(sys.argv[0])
        shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
        click.echo(f"In a second terminal, here:  {shown} demo")
        click.echo("Stop with Ctrl-C; make clean, and rm -r var, remove all that it made.")
    sys.stdout.flush()
