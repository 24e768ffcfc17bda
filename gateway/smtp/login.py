"""AUTH as a client says it (RFC 4954): SCRAM-SHA-256 before PLAIN before LOGIN. Pure: no IO.

With SCRAM (RFC 7677) the host never hears the password, and has to show that it knows it, too.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from scramp import ScramClient, ScramException

from gateway.errors import DialogueError
from gateway.smtp.talk import Say, ask

if TYPE_CHECKING:
    from gateway.smtp.talk import Login, Talk
    from gateway.smtp.wire import RemoteReply

#: Rounds that a host may ask for: fewer make a password easy to guess, more keep us busy for nothing.
FEWEST, MOST = 4096, 200_000
#: Octets of a command line, less its CRLF (RFC 5321 section 4.5.3.1.4); a response alone may be longer.
LONGEST = 510
_MORE, _DONE = 334, 235


def log_in(offered: str, login: Login) -> Talk[None]:
    """Log in by the best mechanism of those that EHLO named. Raises DialogueError."""
    mechanisms = offered.upper().split()
    if "SCRAM-SHA-256" in mechanisms:
        yield from _scram(login)
    elif "PLAIN" in mechanisms:
        yield from _plain(login)
    elif "LOGIN" in mechanisms:
        yield from _login(login)
    else:
        raise DialogueError("it offers no way to log in that we know", "4.7.4")


def _plain(login: Login) -> Talk[None]:
    reply = yield from _begin(b"AUTH PLAIN", _b64(f"\0{login.user}\0{login.password}"))
    _check(reply, _DONE)


def _login(login: Login) -> Talk[None]:
    _check((yield from ask(b"AUTH LOGIN")), _MORE)
    _check((yield from ask(_b64(login.user))), _MORE)
    _check((yield from ask(_b64(login.password))), _DONE)


def _scram(login: Login) -> Talk[None]:
    try:
        ours = ScramClient(["SCRAM-SHA-256"], login.user, login.password)
        reply = yield from _begin(b"AUTH SCRAM-SHA-256", _b64(ours.get_client_first()))
        ours.set_server_first(_said(reply))
        rounds = int(ours.iterations)
        if not FEWEST <= rounds <= MOST:
            raise DialogueError(f"it wants SCRAM with {rounds} rounds", "4.7.8")
        reply = yield from ask(_b64(ours.get_client_final()))
        ours.set_server_final(_said(reply))
    except (ScramException, ValueError) as error:
        raise DialogueError(f"it does not keep to SCRAM: {error}", "4.7.8") from error
    yield Say(b"\r\n")
    _check((yield from ask(b"")), _DONE)


def _begin(command: bytes, response: bytes) -> Talk[RemoteReply]:
    """Say the first response with the command, where the line may be so long (RFC 4954 section 4)."""
    if len(command) + len(response) < LONGEST:
        return (yield from ask(command + b" " + response))
    _check((yield from ask(command)), _MORE)
    return (yield from ask(response))


def _said(reply: RemoteReply) -> str:
    """Read what a host said in the midst of a mechanism. Raises DialogueError, ValueError."""
    _check(reply, _MORE)
    return base64.b64decode(reply.lines[0], validate=True).decode()


def _check(reply: RemoteReply, code: int) -> None:
    if reply.code != code or reply.mixed:
        raise DialogueError("it refused our login", "4.7.8", str(reply))


def _b64(text: str) -> bytes:
    return base64.b64encode(text.encode())
