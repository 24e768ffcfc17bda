"""The group of all commands: it imports each when it is asked for, and tells faults on stderr."""

from __future__ import annotations

from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

import click

from gateway.commands.common import conf_option
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from pathlib import Path

#: The commands, in the order of a site's life -> their help. A command's file has its name.
COMMANDS = {
    "run": "Serve mail in the foreground until SIGTERM.",
    "init": "Write a first configuration.",
    "check": "Check the configuration, and warn of what is likely wrong.",
    "settings": "Show the settings in use, and where each comes from.",
    "reload": "Make the running gateway use the configuration as it is now.",
    "status": "Show the health of the running gateway.",
    "demo": "Send two messages through the demo and show their way.",
    "stages": "Show which plugins are asked at each stage.",
    "plugin": "Write a plugin, try one, and see which there are.",
    "address": "Show what would become of mail for an address.",
    "domain": "Add virtual domains.",
    "queue": "See and change what waits in the queue.",
    "trace": "Tell the story of a message.",
    "passwd": "Set the password of a login, or lock it.",
    "import-qmail": "Take over an installation of qmail, and the mail in its queue.",
    "version": "Print the version.",
}


def command_of(name: str) -> click.Command:
    """Import one of our commands."""
    module = name.replace("-", "_")
    command: click.Command = getattr(import_module(f"gateway.commands.{module}"), module)
    return command


class Fault(click.ClickException):
    """A GatewayError on its way to the terminal: its text as it is, exit 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print one problem a line."""
        click.echo(self.message, file=file, err=True)


class Lazy(click.Group):
    """Imports a command's module only when it is asked for; plugins may add commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands; those of plugins only where there is a configuration that loads."""
        return [*COMMANDS, *sorted(_of_plugins(ctx, quiet=True))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; a name that is not ours may be a plugin's."""
        if cmd_name not in COMMANDS:
            return _of_plugins(ctx, quiet=False).get(cmd_name)
        return command_of(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        added = {name: one.get_short_help_str() for name, one in _of_plugins(ctx, quiet=True).items()}
        with formatter.section("Commands"):
            formatter.write_dl(list((COMMANDS | added).items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an expected fault is its text and exit 1, never a traceback."""
        try:
            return super().invoke(ctx)
        except GatewayError as error:
            raise Fault(str(error)) from error
        except OSError as error:
            if error.filename is None:
                raise
            raise Fault(f"{error.filename}: {error.strerror}") from error


@click.group(
    cls=Lazy,
    epilog="""\b
Examples:
  mailward init /etc/mailward
  mailward check
  mailward COMMAND --help""",
)
@conf_option
def mailward(conf: Path | None) -> None:
    """Run a mail gateway that re-creates qmail as a chain of plugins."""
    del conf  # commands find it through the context


def _of_plugins(ctx: click.Context, *, quiet: bool) -> dict[str, click.Command]:
    """Ask the plugins of the configuration for their commands."""
    from gateway.commands.common import configuration_folder, load

    conf = ctx.params.get("conf")
    try:
        configuration_folder(conf)
    except GatewayError:
        return {}
    from gateway.commands.assembly import Assembly

    try:
        assembly = Assembly.of(load(conf))
    except GatewayError:
        if quiet:
            return {}
        raise
    steps = assembly.generation.chain.steps["commands"]
    return {command.name or step.plugin: command for step in steps for command in step.call() or ()}
