"""Lists of addresses in header fields: found from right to left, and completed (qmail spec 8.1). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.qmail.tokens import ATOM, COMMENT, LITERAL, QUOTE, Token

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMA: Token = (",", b",")
#: What may stand before `<`: the words of a name.
_PHRASE = (COMMENT, ATOM, QUOTE, "@", ".")


class ListError(Exception):
    """Not a list of addresses: a `:` or `;` or `<` that has no partner."""


class Completion:
    """Completes addresses by the default names of this machine, each given with its `@` or `.` in front."""

    def __init__(self, host: list[Token], domain: list[Token], plus: list[Token]) -> None:
        self._host = host
        self._domain = domain
        self._plus = plus

    def __call__(self, address: list[Token]) -> list[Token]:
        """Give the complete address; the empty one and `anything@[]` stay as they are."""
        if address[-2:] == [("@", b"@"), (LITERAL, b"")]:
            return address
        address = _without_ends(_without_route(address))
        if not address:
            return address
        if not any(kind == "@" for kind, _ in address):
            address = address + self._host
        kind, text = address[-1]
        if kind == ATOM and text.endswith(b"+"):
            address = [*address[:-1], (ATOM, text[:-1]), *self._plus]
        return address if _is_full(address) else address + self._domain


def _without_route(address: list[Token]) -> list[Token]:
    if address and address[0][0] == "@":
        kinds = [kind for kind, _ in address]
        return address[kinds.index(":") + 1 :] if ":" in kinds else []
    return address


def _without_ends(address: list[Token]) -> list[Token]:
    """Drop one dot, then one `@`, at the end."""
    for end in ".@":
        if address and address[-1][0] == end:
            address = address[:-1]
    return address


def _is_full(address: list[Token]) -> bool:
    """Whether the host needs no domain: it has a dot, or is a literal."""
    for kind, _ in reversed(address):
        if kind in (".", LITERAL):
            return True
        if kind == "@":
            return False
    return False


def rewrite(
    tokens: list[Token], complete: Callable[[list[Token]], list[Token]], found: list[list[Token]]
) -> list[Token]:
    """Complete the addresses of a field whose first two tokens are its name and colon; gives it anew.

    Addresses go to `found` as they are met, the last one first. Raises ListError; those met before it count.
    """
    return _Walk(tokens, complete, found).walk()


class _Walk:
    """One walk over a field from right to left."""

    def __init__(
        self, tokens: list[Token], complete: Callable[[list[Token]], list[Token]], found: list[list[Token]]
    ) -> None:
        self._head, self._left = tokens[:2], tokens[2:]
        self._complete = complete
        self._found = found
        #: Both from right to left.
        self._out: list[Token] = []
        self._address: list[Token] = []
        self._in_group = False
        self._word_ok = True

    def walk(self) -> list[Token]:
        """Give the field."""
        while self._left:
            self._step(self._left[-1][0])
        self._flush()
        return self._head + self._out[::-1]

    def _step(self, kind: str) -> None:
        if kind in (";", ",", ":"):
            self._separator(kind)
        elif kind == ">":
            self._bracketed()
        elif kind == COMMENT:
            self._out.append(self._left.pop())
        elif kind in (ATOM, QUOTE, LITERAL):
            if not self._word_ok:
                self._flush(_COMMA)
            self._word_ok = False
            self._address.append(self._left.pop())
        else:
            self._word_ok = True
            self._address.append(self._left.pop())

    def _separator(self, kind: str) -> None:
        self._word_ok = True
        if kind == ";":
            self._flush(_COMMA)
            if self._in_group:
                raise ListError
            self._in_group = True
        else:
            self._flush()
        if kind == ":":
            if not self._in_group:
                raise ListError
            self._in_group = False
            self._take(lambda one: one != ",")
        if self._left:
            self._out.append(self._left.pop())

    def _bracketed(self) -> None:
        self._flush(_COMMA)
        self._out.append(self._left.pop())
        while self._left and self._left[-1][0] != "<":
            self._address.append(self._left.pop())
        self._got()
        if not self._left:
            raise ListError
        self._out.append(self._left.pop())
        self._take(lambda one: one in _PHRASE)
        self._word_ok = False

    def _take(self, wanted: Callable[[str], bool]) -> None:
        while self._left and wanted(self._left[-1][0]):
            self._out.append(self._left.pop())

    def _flush(self, separator: Token | None = None) -> None:
        if self._address:
            self._got()
            if separator:
                self._out.append(separator)

    def _got(self) -> None:
        address = self._complete(self._address[::-1])
        self._found.append(address)
        self._out += address[::-1]
        self._address = []
