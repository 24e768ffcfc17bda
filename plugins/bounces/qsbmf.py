"""QSBMF, the format of qmail's bounces, byte for byte as its readers (ezmlm and others) expect it.

Pure: no IO.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .shown import CONTROLS, encode, in_header, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway import Failure, Message

#: Within a report, line ends stay, and the CR of a local program, as with qmail; a host's replies have none.
_IN_REPORT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
#: A line end behind a line end would end the paragraph; the last byte ends it anyway.
_EMPTY_LINE = re.compile(r"(?<=\n)\n(?=.)", re.DOTALL)


def body(
    host: str, failures: Iterable[Failure], original: Message, returned: str, *, double: bool, whole: bool
) -> bytes:
    """Write all behind the header: a word, a paragraph for each recipient, the message with its sender."""
    text = [_introduction(host, double=double), *map(paragraph, failures), _break(whole=whole)]
    return encode("\n" + "".join(text)) + _original(original, returned, whole=whole)


def paragraph(failure: Failure) -> str:
    """Write what is told of one recipient; no report can end its paragraph early."""
    report = _IN_REPORT.sub("", failure.text)
    if report and not report.endswith("\n"):
        report += "\n"
    return _EMPTY_LINE.sub("/", f"<{CONTROLS.sub('_', shown(failure))}>:\n{report}") + "\n"


def _introduction(host: str, *, double: bool) -> str:
    greeting = f"Hi. This is the mail gateway at {host}.\n"
    if double:
        return f"{greeting}The bounce below could not be delivered to the sender that it is for.\n\n"
    return (
        f"{greeting}Your message could not be delivered to the addresses below.\nNobody will try again.\n\n"
    )


def _break(*, whole: bool) -> str:
    if whole:
        return "--- A copy of the message follows.\n\n"
    return "--- The header of the message follows; its body is too large to come back.\n\n"


def _original(message: Message, sender: str, *, whole: bool) -> bytes:
    content = bytes(message) if whole else message.header
    return encode(f"Return-Path: <{in_header(sender)}>\n") + content
