"""The account alias: who gets what nobody else has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lower

if TYPE_CHECKING:
    from pathlib import Path


_MAILBOX = "./Maildir/\n"


def as_alias(local: str, separator: str) -> tuple[str, str]:
    """Give (dash, extension) that alias has of a local part.

    That is all of it, but for mail to alias by its name: `alias-corp-info` is what `corp.example: alias-corp`
    in virtual_domains makes, and qmail finds the user alias by it as it finds any other.
    """
    name, rest = local[: len("alias")], local[len("alias") :]
    if lower(name) != "alias" or (rest and rest[0] not in ("-", separator)):
        return "-", local
    return ("-", rest[1:]) if rest else ("", "")


def make_alias(home: Path, hostname: str, postmaster: str) -> None:
    """Make a home, with a mailbox unless the postmaster is elsewhere; what people wrote there stays."""
    for part in ("tmp", "new", "cur"):
        (home / "Maildir" / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = f"postmaster@{hostname}"
    mailbox, daemon = home / ".qmail-postmaster", home / ".qmail-mailer-daemon"
    if lower(postmaster) == lower(ours):
        _write_new(mailbox, _MAILBOX)
    elif _is_ours(mailbox):
        # Made while there was no other postmaster.
        mailbox.unlink()
    _write_new(daemon, f"&{ours}\n")


def _is_ours(mailbox: Path) -> bool:
    try:
        return mailbox.read_bytes() == _MAILBOX.encode()
    except OSError:
        return False


def _write_new(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text)
