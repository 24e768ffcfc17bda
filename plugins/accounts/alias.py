"""The account alias: who gets what nobody else has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lower

if TYPE_CHECKING:
    from pathlib import Path


def as_alias(local: str, separator: str) -> tuple[str, str]:
    """Give (dash, extension) that alias has of a local part.

    That is all of it, but for mail to alias by its name: `alias-corp-info` is what `corp.example: alias-corp`
    in virtual_domains makes, and qmail finds the user alias by it as it finds any other.
    """
    name, rest = local[: len("alias")], local[len("alias") :]
    if lower(name) != "alias" or (rest and rest[0] not in ("-", separator)):
        return "-", local
    return ("-", rest[1:]) if rest else ("", "")


def make_alias(home: Path) -> None:
    """Make a home whose only mailbox is the postmaster's; what is there stays."""
    for part in ("tmp", "new", "cur"):
        (home / "Maildir" / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("postmaster", "mailer-daemon"):
        control = home / f".qmail-{name}"
        if not control.exists():
            control.write_text("./Maildir/\n")
