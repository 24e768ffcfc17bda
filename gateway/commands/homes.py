"""Which accounts of a configuration a gateway could not deliver to, were it started by whoever asks."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.accounts.book import Book
from gateway.accounts.ownership import refuse_changeable
from gateway.errors import AgentError, ConfigError, Problem
from gateway.partition import plan
from gateway.partition.privilege import user_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from gateway.configuration import Configuration
    from gateway.errors import Place

#: How many `.qmail` files are looked at for program lines, and how much of each.
_FILES, _BYTES = 10_000, 16 * 1024


def undelivered(configuration: Configuration) -> Iterator[Problem]:
    """Warn of each account that root would not become, or whose home we may not write as the gateway."""
    user, place = configuration.settings.gateway.user, configuration.tree.place("gateway", "user")
    own = os.geteuid()
    try:
        account = user_of(user, place)
    except ConfigError:
        # `check` says whom root cannot become; without root nobody has to.
        if own != 0 and not user:
            yield from _closed(configuration, own)
        return
    if own == 0:
        yield from refused(configuration, account)
    elif account.pw_uid == own:
        yield from _closed(configuration, own)


def refused(configuration: Configuration, own: pwd.struct_passwd) -> Iterator[Problem]:
    """Warn of each account that the agent would not become; `own` is the gateway's user."""
    try:
        book = Book(plan.accounts(configuration.tree), own)
    except ConfigError as error:
        # A site's own `accounts` may have settings of its own; without root it is served all the same.
        yield from (
            Problem(f"{one.message}: root starts no such gateway", one.place) for one in error.problems
        )
        return
    for name, home, uid, place in _listed(configuration):
        try:
            # A worker delivers to its own user's homes, as itself.
            refuse_changeable(home, uid if uid == own.pw_uid else book.find(name, home).uid)
            yield from _changeable(home, place)
        except AgentError as error:
            remedy = "" if uid else f": run chown -R {own.pw_name}: {home}"
            yield Problem(f"accounts: mail will wait: {error}{remedy}", place)
        except OSError:
            continue


def programs(configuration: Configuration) -> Iterator[Problem]:
    """Warn of program lines in our own homes: no worker runs them where root has started the gateway.

    To be asked as `gateway.user`: these files are users'.
    """
    own = os.geteuid()
    homes = ((home, place) for _, home, uid, place in _known(configuration) if uid == own)
    files = ((path, place) for home, place in homes for path in _dot_qmail(home))
    for path, place in islice(files, _FILES):
        if line := _program_line(path):
            text = f"{path}:{line}: no program runs as the gateway's own user: chown the home to another"
            yield Problem(f"accounts: mail will wait: {text}", place)


def _dot_qmail(home: str) -> list[str]:
    try:
        with os.scandir(home) as entries:
            found = (one.path for one in entries if one.name.startswith(".qmail"))
            return sorted(islice(found, _FILES))
    except OSError:
        return []


def _program_line(path: str) -> int:
    """Give the first program line of a regular file; 0 where there is none that we could see."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0
    with open(number, "rb") as file:  # noqa: PTH123 - by its number
        text = file.read(_BYTES) if stat.S_ISREG(os.fstat(number).st_mode) else b""
    return next((at for at, line in enumerate(text.split(b"\n"), 1) if line.startswith(b"|")), 0)


def _closed(configuration: Configuration, own: int) -> Iterator[Problem]:
    """Warn of each home that we may not write."""
    for name, home, uid, place in _known(configuration):
        if uid != own and not os.access(home, os.W_OK | os.X_OK):
            unless = ", unless root starts the gateway" if uid else ""
            text = f"{name}: {home} belongs to uid {uid}, and uid {own} may not write it"
            yield Problem(f"accounts: mail will wait{unless}: {text}", place)
        yield from _changeable(home, place)


def _changeable(home: str, place: Place | None) -> Iterator[Problem]:
    """Warn of the `.qmail` files of a home that everybody may write, as far as we may look."""
    for path in map(Path, _dot_qmail(home)):
        if path.is_file() and path.stat().st_mode & stat.S_IWOTH:
            text = f"{path} is writable for everybody: run chmod o-w"
            yield Problem(f"accounts: mail will wait: {text}", place)


def _known(configuration: Configuration) -> list[tuple[str, str, int, Place | None]]:
    """Give what is listed; nothing where a site's own `accounts` has settings of its own."""
    try:
        return list(_listed(configuration))
    except ConfigError:
        return []


def _listed(configuration: Configuration) -> Iterator[tuple[str, str, int, Place | None]]:
    """Give name, home, uid and place of each account that the configuration lists."""
    tree = configuration.tree
    listed = plan.accounts(tree)
    found: list[tuple[str, tuple[str, ...], Any]] = [
        (name, ("virtual", name), one) for name, one in listed["virtual"].items()
    ]
    if listed["alias"]:
        found.append(("alias", ("alias",), listed["alias"]))
    for name, key, (home, uid, _) in found:
        try:
            owner = Path(home).stat().st_uid
        except OSError:
            continue  # a home that is not there yet has a warning of its own
        yield name, home, owner if uid is None else uid, tree.place("accounts", *key)
