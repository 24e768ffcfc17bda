"""The command `mailward`: one file for each of its commands, loaded when it is used."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name.

    qmail's own programs start often and must start fast: here is where they are told apart, before click
    or anything else is imported.
    """
    if sys.argv[1:2] == ["qmail"]:
        from gateway import qmail

        sys.exit(qmail.main("".join(sys.argv[2:3]), sys.argv[3:]))
    from gateway.commands.group import mailward

    mailward(prog_name="mailward")
