"""`mailward version`."""

from __future__ import annotations

from importlib.metadata import version as installed

import click


@click.command(epilog="Example: mailward version")
def version() -> None:
    """Print the version."""
    click.echo(f"mailward {installed('mailward')}")
