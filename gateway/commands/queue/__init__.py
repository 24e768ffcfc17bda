"""`mailward queue`: see and change what waits."""

from __future__ import annotations

import click

from gateway.commands.queue.archives import backup, restore, verify
from gateway.commands.queue.backoff import backoff
from gateway.commands.queue.change import CHANGES
from gateway.commands.queue.destinations import resume, suspend, suspended
from gateway.commands.queue.look import list_, show, stats
from gateway.commands.queue.messages import adopt, export, import_
from gateway.commands.queue.salvage import salvage


class InOrder(click.Group):
    """Lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        del ctx
        return list(self.commands)


@click.group(
    cls=InOrder,
    epilog="""\b
Examples:
  mailward queue stats
  mailward queue list --domain example.com
  mailward queue show 01997a3e-5a40-7c4e-9d6b-0a3f2d7c5e11
  mailward queue delete --sender '*@spam.example' --dry-run
  mailward queue backup /var/backups/mailward.tar
  mailward queue suspend example.com --for 2h --reason 'their disk is full'""",
)
def queue() -> None:
    """See and change what waits in the queue.

    Every change is an event with your name. While the gateway runs, it does what these commands ask;
    without one, they open the queue themselves.
    """


for command in (list_, show, stats, *CHANGES, suspend, resume, suspended, backoff):
    queue.add_command(command)
for command in (backup, verify, restore, export, import_, adopt, salvage):
    queue.add_command(command)
