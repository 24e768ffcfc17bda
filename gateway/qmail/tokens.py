"""The words of an address field, as qmail reads them (RFC 822 section 3.3). Pure.

A token is a pair of kind and text. Kinds of one character are that character.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ATOM, QUOTE, LITERAL, COMMENT = "atom", "quote", "literal", "comment"
_WORDS = (ATOM, QUOTE, LITERAL, COMMENT)
_SPECIALS = b"<>@,;:."
_BLANKS = b" \t\r\n"
_NOT_IN_ATOMS = _BLANKS + _SPECIALS + b'(["'
#: An atom with one of these is written in quotes.
_UNSAFE = re.compile(rb"[^ -~]|[)\]\\]")
_ESCAPED = re.compile(rb'["\[\]()\\\r\n]')
_QUOTED = {QUOTE: b'"%b"', LITERAL: b"[%b]", COMMENT: b"(%b)"}
#: What makes quotes necessary in a local part (qmail's quote.c).
_NEEDS_QUOTES = re.compile(rb'[^!-~]|["(),:;<>@\[\\\]]|^\.|\.\Z|\.\.|^\Z')
_IN_QUOTES = re.compile(rb'["\\\r\n]')

Token = tuple[str, bytes]


class TokenError(Exception):
    """A quote, comment or literal without end, or a closing bracket without beginning."""


def parse(text: bytes) -> list[Token]:
    """Split a field into tokens. Raises TokenError."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        char = text[at : at + 1]
        if char in _BLANKS:
            at += 1
        elif char in _SPECIALS:
            tokens.append((char.decode(), char))
            at += 1
        elif char in b")]":
            raise TokenError
        else:
            token, at = _READERS.get(char, _atom)(text, at)
            tokens.append(token)
    return tokens


def _atom(text: bytes, at: int) -> tuple[Token, int]:
    word = bytearray()
    while at < len(text) and text[at] not in _NOT_IN_ATOMS:
        if text[at] == _BACKSLASH:
            at += 1
            if at == len(text):
                break
        word.append(text[at])
        at += 1
    return (QUOTE if _UNSAFE.search(word) else ATOM, bytes(word)), at


def _until(end: bytes, kind: str) -> Callable[[bytes, int], tuple[Token, int]]:
    def read(text: bytes, at: int) -> tuple[Token, int]:
        word = bytearray()
        at += 1
        while text[at : at + 1] != end:
            if text[at : at + 1] == b"\\":
                at += 1
            if at >= len(text):
                raise TokenError
            word.append(text[at])
            at += 1
        return (kind, bytes(word)), at + 1

    return read


def _comment(text: bytes, at: int) -> tuple[Token, int]:
    word = bytearray()
    depth = 0
    while True:
        if at >= len(text):
            raise TokenError
        char = text[at : at + 1]
        depth += (char == b"(") - (char == b")")
        if not depth:
            return (COMMENT, bytes(word[1:])), at + 1
        if char == b"\\":
            at += 1
        word += text[at : at + 1]
        at += 1


_BACKSLASH = ord("\\")
_READERS = {b'"': _until(b'"', QUOTE), b"[": _until(b"]", LITERAL), b"(": _comment}


def unquote(tokens: list[Token]) -> bytes:
    """Give the address that tokens stand for."""
    return b"".join(b"[%b]" % text if kind == LITERAL else text for kind, text in tokens if kind != COMMENT)


def write(tokens: list[Token], width: int) -> bytes:
    """Write a field of these tokens, with its line end; lines end at commas, before `width` if they can."""
    lines: list[bytes] = []
    line = piece = b""
    last = ""
    for kind, text in tokens:
        piece += (b" " if _apart(last, kind) else b"") + _written(kind, text)
        last = kind
        if kind == ",":
            line, piece = _joined(lines, line, piece, width), b""
    line = _joined(lines, line, piece, width)
    return b"\n".join([*lines, line, b""])


def _joined(lines: list[bytes], line: bytes, piece: bytes, width: int) -> bytes:
    """Add a piece to the line, or end the line before it; gives the line to go on with."""
    # qmail counts the line end that it may have to put in, and the blank behind it.
    if not line or len(line) + len(piece) + 2 <= width:
        return line + piece
    lines.append(line)
    return b" " + piece


def _apart(left: str, right: str) -> bool:
    """Whether a blank stands between two tokens."""
    return bool(left) and (left in ":," or right == "<" or (left in _WORDS and right in _WORDS))


def _written(kind: str, text: bytes) -> bytes:
    if kind not in _WORDS:
        return text
    escaped = _ESCAPED.sub(rb"\\\g<0>", text)
    return _QUOTED[kind] % escaped if kind in _QUOTED else escaped


def quote(address: bytes) -> bytes:
    """Write an address with its local part quoted where it must be; the null sender stays empty."""
    local, at, host = address.rpartition(b"@")
    if not at:
        local, host = host, b""
    return address and quote_local(local) + at + host


def quote_local(local: bytes) -> bytes:
    """Quote a local part where it must be."""
    if not _NEEDS_QUOTES.search(local):
        return local
    return b'"' + _IN_QUOTES.sub(rb"\\\g<0>", local) + b'"'
