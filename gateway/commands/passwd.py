"""`mailward passwd`: logins of `auth_file`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gateway.authentication import passwords
from gateway.commands.common import conf_option, load
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.configuration import Configuration


@click.command(
    epilog="""\b
Examples:
  mailward passwd ann@example.org               asks for the password, twice
  echo SECRET | mailward passwd ann@example.org
  mailward passwd --lock ann@example.org        and ends the sessions of this login
"""
)
@click.argument("login")
@click.option("--scram", is_flag=True, help="Also keep keys for SCRAM-SHA-256.")
@click.option("--lock", "action", flag_value="lock", help="Refuse this login, and end its sessions.")
@click.option("--unlock", "action", flag_value="unlock", help="Let it in again, with its old password.")
@click.option("--remove", "action", flag_value="remove", help="Forget it, and end its sessions.")
@conf_option
def passwd(conf: Path | None, login: str, *, scram: bool, action: str | None) -> None:
    """Set the password of a login in the file of auth_file, or lock the login."""
    if not passwords.LOGIN.fullmatch(login):
        raise click.UsageError("a login has no blank, no colon and at most 255 characters")
    configuration = load(conf)
    path = file_of(configuration)
    if action is None:
        _set(path, login, scram=scram)
    else:
        _change(path, login, action)
    if action in ("lock", "remove"):
        _end_sessions(configuration, login)


def file_of(configuration: Configuration) -> Path:
    """Find the file of logins. Raises ConfigError."""
    tree = configuration.tree
    if "auth_file" not in tree.sections():
        raise ConfigError("no section auth_file: write `auth_file: {file: passwords}` into a file of conf.d")
    return tree.base / (tree.text("auth_file", "file") or "passwords")


def _set(path: Path, login: str, *, scram: bool) -> None:
    import argon2

    from gateway.smtp.sasl import make_keys

    password = _ask(login)
    keys = make_keys(password) if scram else None
    hashed = argon2.PasswordHasher().hash(password)
    passwords.change(path, login, lambda _: passwords.Kept(login, hashed, scram=keys))
    click.echo(f"{path}: {login} has a new password")


def _ask(login: str) -> str:
    if sys.stdin.isatty():
        password: str = click.prompt(f"Password for {login}", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not 1 <= len(password) <= 255:  # noqa: PLR2004 what `smtp.sasl` takes
        raise click.UsageError("a password has 1 to 255 characters")
    return password


def _change(path: Path, login: str, action: str) -> None:
    def changed(kept: passwords.Kept | None) -> passwords.Kept | None:
        if kept is None:
            raise ConfigError(f"{path}: there is no login {login}")
        return None if action == "remove" else passwords.locked(kept, lock=action == "lock")

    passwords.change(path, login, changed)
    click.echo(f"{path}: {action.rstrip('e')}ed {login}")


def _end_sessions(configuration: Configuration, login: str) -> None:
    from gateway import console

    state = configuration.settings.gateway.state
    if console.running(state):
        ended = sum(row["ended"] for row in console.call(state, "sessions.end", user=login))
        click.echo(f"{ended} sessions were ended")
