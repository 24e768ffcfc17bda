"""sendmail, mailq and newaliases: what programs expect of sendmail, by qmail's own (qmail spec 8.2)."""

from __future__ import annotations

import sys

from gateway.qmail import PERMANENT, inject, qread, smtp
from gateway.qmail.options import OptionError, options
from gateway.qmail.place import Place

#: `-E` and `-J` take the rest of their word, so they are dropped before the others are read.
_OPTIONS = "vimte:f:p:o:B:F:xb:"
_USAGE = "usage: sendmail [ -t ] [ -fsender ] [ -Fname ] [ -bp ] [ -bs ] [ arg ... ]"


def main(name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    if name == "mailq":
        return qread.main("qmail-qread", [], place)
    if name == "newaliases":
        sys.stderr.write("newaliases: fatal: there is no alias database: aliases are seen when they change\n")
        return PERMANENT
    try:
        given, recipients = options(_without_ignored(arguments), _OPTIONS)
    except OptionError as error:
        sys.stderr.write(f"sendmail: {error}\n{_USAGE}\n")
        return PERMANENT
    mode = [value[:1] for letter, value in given if letter == "b" and value[:1] != b"m"]
    if mode == [b"p"]:
        return qread.main("qmail-qread", [], place)
    if mode == [b"s"]:
        return smtp.serve(place)
    if mode:
        sys.stderr.write(f"{_USAGE}\n")
        return PERMANENT
    return _send(given, recipients, place)


def _without_ignored(arguments: list[bytes]) -> list[bytes]:
    """Drop the words of -E and -J in front of the recipients."""
    end = next((i for i, one in enumerate(arguments) if one == b"--"), len(arguments))
    return [one for i, one in enumerate(arguments) if i > end or one[:2] not in (b"-E", b"-J")]


def _send(given: list[tuple[str, bytes]], recipients: list[bytes], place: Place) -> int:
    env = dict(place.env)
    names = [value for letter, value in given if letter == "F"]
    # `-f<>` is how vacation and others write the null sender.
    senders = [b"" if value == b"<>" else value for letter, value in given if letter == "f"]
    if names:
        env[b"MAILNAME"] = names[-1]
    command = [b"-H" if any(letter == "t" for letter, _ in given) else b"-a"]
    if senders:
        for name in (b"QMAILNAME", b"MAILNAME", b"NAME", b"QMAILHOST", b"MAILHOST"):
            env.pop(name, None)
        user, at, host = senders[-1].rpartition(b"@")
        env[b"QMAILUSER"] = user if at else host
        if at:
            env[b"QMAILHOST"] = host
        command += [b"-f", senders[-1]]
    return inject.main("qmail-inject", [*command, b"--", *recipients], Place(env, place.folder))
