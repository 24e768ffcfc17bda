"""SASL at the server (RFC 4422, RFC 4954): what is asked, and what it means. Pure: no socket, no plugin.

Each mechanism is a generator: it yields a `Challenge`, and is sent the client's response (bytes), or yields
a `Lookup`, and is sent ScramKeys or None; it returns Credentials. Raises Malformed for what is not of the
mechanism, Denied for credentials that are wrong beyond doubt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scramp import ScramException, ScramMechanism
from scramp.utils import ServerError

from gateway.envelope import Credentials, ScramKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    #: It is sent bytes for a Challenge, ScramKeys or None for a Lookup.
    Exchange = Generator["Challenge | Lookup", Any, Credentials]

#: RFC 4954 section 4: the longest line of an exchange, with its CRLF.
LONGEST_RESPONSE = 12288
#: Longest login and password; argon2 and PBKDF2 are asked nothing longer.
_LONGEST = 255
#: Rounds of PBKDF2 for new keys, and what is shown for a login that does not exist. RFC 7677 asks for 4096.
_ITERATIONS = 100_000


class Malformed(Exception):
    """A response that the mechanism does not know."""


class Denied(Exception):
    """The client has shown that it does not know the password; `login` is what it claimed."""

    def __init__(self, login: str) -> None:
        super().__init__(login)
        self.login = login


@dataclass(frozen=True, slots=True)
class Challenge:
    """Ask the client."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask for the keys of a login."""

    login: str


def decode(line: bytes) -> bytes:
    """Read a response line; `=` is the empty initial response. Raises Malformed."""
    try:
        return b"" if line == b"=" else base64.b64decode(line, validate=True)
    except binascii.Error:
        raise Malformed from None


def plain(initial: bytes | None, _: bytes) -> Exchange:
    """RFC 4616: `authzid NUL authcid NUL passwd`; nobody may be somebody else."""
    response = initial if initial is not None else (yield Challenge(b""))
    parts = response.split(b"\0")
    if len(parts) != 3:  # noqa: PLR2004 RFC 4616 section 2
        raise Malformed
    acting, login, password = map(_text, parts)
    if acting not in ("", login):
        raise Denied(login)
    return _credentials("PLAIN", login, password)


def login(initial: bytes | None, _: bytes) -> Exchange:
    """Ask for name and password one by one, as draft-murchison-sasl-login writes it down."""
    name = initial if initial is not None else (yield Challenge(b"Username:"))
    password = yield Challenge(b"Password:")
    return _credentials("LOGIN", _text(name), _text(password))


def scram(initial: bytes | None, secret: bytes) -> Exchange:
    """RFC 5802 with SHA-256 (RFC 7677). `secret` keeps logins that do not exist from being told apart."""
    first = _text(initial if initial is not None else (yield Challenge(b"")))
    asked: list[str] = []

    def note(name: str) -> ScramKeys:
        asked.append(name)
        return _pretended(name, secret)

    _server(note, first)
    (name,) = asked
    if not name or len(name) > _LONGEST:
        raise Malformed
    keys = yield Lookup(name)
    server = _server(lambda _: keys or _pretended(name, secret), first)
    final = _text((yield Challenge(server.get_server_first().encode())))
    try:
        server.set_client_final(final)
    except ScramException as error:
        if error.server_error is ServerError.INVALID_PROOF:
            raise Denied(name) from None
        raise Malformed from None
    if keys is None:
        raise Denied(name)
    if (yield Challenge(server.get_server_final().encode())):
        raise Malformed
    return Credentials("SCRAM-SHA-256", name, None)


#: In the order in which they are offered; a client takes the first that it knows.
MECHANISMS: dict[str, Callable[[bytes | None, bytes], Exchange]] = {
    "SCRAM-SHA-256": scram,
    "PLAIN": plain,
    "LOGIN": login,
}


def make_keys(password: str, iterations: int = _ITERATIONS) -> ScramKeys:
    """Make the keys of a password, to be kept in its place."""
    mechanism = ScramMechanism("SCRAM-SHA-256")
    salt, stored, server, count = mechanism.make_auth_info(password, iteration_count=iterations)
    return ScramKeys(bytes(salt), int(count), stored, server)


def _server(keys: Callable[[str], Any], first: str) -> Any:
    def known(name: str) -> tuple[bytes, bytes, bytes, int]:
        found = keys(name)
        return found.salt, found.stored_key, found.server_key, found.iterations

    server = ScramMechanism("SCRAM-SHA-256").make_server(known)
    try:
        server.set_client_first(first)
    except ScramException:
        raise Malformed from None
    return server


def _pretended(name: str, secret: bytes) -> ScramKeys:
    """Make keys that nobody has the password of: the same ones each time that the name is asked for."""

    def derived(purpose: bytes) -> bytes:
        return hmac.digest(secret, purpose + name.encode("utf-8", "surrogateescape"), hashlib.sha256)

    return ScramKeys(derived(b"salt")[:16], _ITERATIONS, derived(b"stored"), derived(b"server"))


def _credentials(mechanism: str, name: str, password: str) -> Credentials:
    if not name or not password or max(len(name), len(password)) > _LONGEST:
        raise Malformed
    return Credentials(mechanism, name, password)


def _text(data: bytes) -> str:
    """Read UTF-8 without NUL or line ends. Raises Malformed."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Malformed from None
    if any(one in text for one in "\0\r\n"):
        raise Malformed
    return text
