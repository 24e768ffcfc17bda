"""What root will say of the accounts of a configuration, for `mailward check` as root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.accounts.book import Book
from gateway.accounts.ownership import refuse_changeable
from gateway.errors import AgentError, Problem
from gateway.partition import plan

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from gateway.configuration import Configuration


def refused(configuration: Configuration, own: pwd.struct_passwd) -> Iterator[Problem]:
    """Warn of each account that the agent would not become; `own` is the gateway's user."""
    tree = configuration.tree
    listed = plan.accounts(tree)
    book = Book(listed, own)
    keys = {name: ("virtual", name) for name in listed["virtual"]}
    for name, key in {**keys, **({"alias": ("alias",)} if listed["alias"] else {})}.items():
        home = (listed["alias"] if key == ("alias",) else listed["virtual"][name])[0]
        try:
            refuse_changeable(home, book.find(name, home).uid)
        except AgentError as error:
            yield Problem(f"accounts: mail will wait: {error}", tree.place("accounts", *key))
        except OSError:
            continue  # a home that is not there yet has a warning of its own
