"""recipient_rewrite: change recipients by a table in a CSV file.

Each line is an address, or `@domain` for all of a domain that is not named itself, and one or more addresses
that take its place; `@domain` there keeps the local part. Case does not matter on the left. A change of the
file counts at once; a line that is wrong keeps its file from counting, and mail waits until it is mended.

    sales@example.org,ann@example.org,bob@example.net
    @old.example,@new.example

It is asked before the domains are looked at, so that the new address goes the way of any other:

    recipient_rewrite:
      file: recipients.csv
      before: [locals]

What has taken an address's place is not looked up again. Events: those of `rewrite`; `mailward address`
prints the line of the file that decided.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from gateway import ConfigError, Place, Plugin, Problem, Section, controls, hookimpl, lower

if TYPE_CHECKING:
    from gateway import Context, Recipient

    #: Left side -> (right sides, where it stands).
    Table = dict[str, tuple[list[str], str]]


class Settings(Section):
    """Where the table is."""

    #: The CSV file; a relative path starts at the folder that holds `conf.d`.
    file: str


class RecipientRewrite(Plugin[Settings]):
    """Looks each recipient up, then its domain."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        path = self.site.base / self.settings.file
        self._file = controls.ControlFile(path, parse_table, "recipient_rewrite.file", self.place("file"))

    @hookimpl
    def rewrite(self, recipient: Recipient) -> list[Recipient] | None:
        """Put what the table says in the recipient's place."""
        table = self._file.get()
        key = lower(recipient.address)
        found = table.get(key) or table.get(f"@{key.rpartition('@')[2]}")
        if recipient.claimed or not found:
            return None
        local = recipient.address.rpartition("@")[0]
        to, place = found
        return [
            recipient.at(f"{local}{one}" if one.startswith("@") else one, rule=f"{place}: {one}")
            for one in to
        ]


def parse_table(text: str, name: str) -> Table:
    """Read the table. Raises ConfigError with the first line that is wrong."""
    table: Table = {}
    rows = csv.reader(text.splitlines())
    for row in rows:
        left, *right = [cell.strip() for cell in row] or [""]
        if not left or left.startswith("#"):
            continue
        place = Place(name, rows.line_num)
        if not right or not all(one.rpartition("@")[2] and "@" in one for one in (left, *right)):
            raise ConfigError(
                Problem("write an address or @domain, a comma, and what takes its place", place)
            )
        if lower(left) in table:
            raise ConfigError(Problem(f"{left} stands in {table[lower(left)][1]} already", place))
        table[lower(left)] = right, str(place)
    return table
