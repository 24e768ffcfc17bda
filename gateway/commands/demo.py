"""`mailward demo`: two messages on their way through the running demo, seen live."""

from __future__ import annotations

import asyncio
import os
import smtplib
import time
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway import console
from gateway.commands.common import plain, print_table, program
from gateway.endpoint import Endpoint
from gateway.errors import ConfigError, ControlError, JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.commands.assembly import Assembly

#: Where `mailward run --demo` keeps its state.
STATE = Path("var")
#: Each message must be through within this many seconds.
PATIENCE = 4.0
_POLL = 0.05
#: What an event says besides time, name and plugin.
_SHOWN = ("sender", "recipient", "to", "rule", "text", "reply", "destination", "reason")
_LONGEST = 100


@click.command(epilog="Example: mailward demo, in the folder where `mailward run --demo` was started")
def demo() -> None:
    """Send one local and one remote message through the demo, and show their way.

    Finds the gateway that `make run` or `mailward run --demo` has started in this folder.
    """
    from gateway.commands.assembly import Assembly
    from gateway.worker import Configuration

    if not console.running(STATE):
        raise ControlError(
            f"no gateway answers at {STATE / console.SOCKET}: start one here, in another terminal, "
            f"with `make run` or `{program()} run --demo`"
        )
    (status,) = console.call(STATE, "status")
    folder = Path(status["configuration"])
    click.echo(f"{status['hostname']} runs here (pid {status['pid']}), with the configuration {folder}.")
    assembly = None
    try:
        assembly = Assembly.of(Configuration.load(folder, Path(status["base"])))
    except ConfigError as error:
        click.echo(f"It does not load any more, so what plugins say beforehand is left out:\n{error}")
    host, port = _listener(status)
    for number, (recipient, what) in enumerate(
        (("info@example.org", "a local message"), ("friend@elsewhere.example", "a remote message")), 1
    ):
        click.secho(f"\n{number}. {what}, to {recipient}", bold=True)
        if assembly:
            _walk(assembly, recipient)
        token = f"demo-{os.urandom(6).hex()}"
        _send(host, port, f"{token}@demo.example", recipient)
        message = _follow(f"{token}@demo.example")
        for path in _copies(token):
            click.echo(f"The message is in {path}")
        click.echo(f"Its whole story:  {program()} trace {message} --conf {_near(folder)}")


def _listener(status: dict[str, Any]) -> tuple[str, int]:
    """Give where the demo listens."""
    address = Endpoint.parse(status["listeners"][0].split()[-1])
    return address.host, address.port


def _walk(assembly: Assembly, recipient: str) -> None:
    """Show what the plugins say to such a recipient, before anything is sent."""
    from gateway.commands.walk import Walk
    from gateway.envelope import Client

    walk = Walk(assembly)
    asyncio.run(walk.go(recipient, Client("127.0.0.1"), "ann@demo.example"))
    rows = [(one.stage, one.plugin or "(nobody)", one.text, one.rule) for one in walk.said]
    print_table(("stage", "plugin", "says", "by"), rows)


def _send(host: str, port: int, sender: str, recipient: str) -> None:
    message = EmailMessage()
    message["From"], message["To"] = sender, recipient
    message["Subject"] = "Mailward's demo"
    message.set_content("This message went through a chain of plugins.\n")
    try:
        with smtplib.SMTP(host, port, timeout=PATIENCE) as client:
            client.send_message(message, sender, [recipient])
    except smtplib.SMTPException as error:
        raise ControlError(f"the gateway did not take the message: {error}") from error


def _follow(sender: str) -> str:
    """Print the events of a message as they come, until its end; gives its id. Raises JournalError."""
    seen: set[str] = set()
    message = ""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        message = message or next((one["message"] for one in _events(sender) if "message" in one), "")
        for event in _events(message) if message else ():
            if event["id"] not in seen and event.get("message") == message:
                seen.add(event["id"])
                _show(event)
                if event["event"] == "message.finished":
                    return message
        time.sleep(_POLL)
    raise JournalError(
        f"the message is not through after {PATIENCE:g} s: `{program()} trace {sender}` tells why"
    )


def _events(having: str) -> Iterator[dict[str, Any]]:
    from gateway.journal import read

    return read(STATE / "journal", since=time.time() - 60, having=having)


def _show(event: dict[str, Any]) -> None:
    values = [event[key] for key in _SHOWN if event.get(key)]
    text = " ".join(" ".join(one) if isinstance(one, list) else str(one) for one in values)
    text = plain(text.replace("\n", " "))
    click.echo(
        f"{event['time'][11:23]}  {event['event']:<20}  {event.get('plugin', ''):<14}  {text[:_LONGEST]}"
    )


def _copies(token: str) -> Iterator[Path]:
    """Find the files that hold the message: in a Maildir, or with the demo's receiver."""
    for path in sorted([*STATE.glob("home/*/*/new/*"), *STATE.glob("sink/*.eml")]):
        if token.encode() in path.read_bytes():
            yield path


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
